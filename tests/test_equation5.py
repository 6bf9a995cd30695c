"""Equation 5, in float64: the gradient of every loss is the mean over tokens of coefficient times grad log pi.

The loss is the trainer's own, through the model and autograd; the other side is the short coefficient function that
stands beside it, with each token's log-prob taken from its sequence alone.
"""

import pytest
import torch
from training import gradients, logprobs, made_up_rollouts

import train_grpo
from kernels.policy_loss import grpo_coefficient
from runtime.distributed import World
from runtime.hf import from_pretrained
from train_grpo import Config, advantages, grpo_gradient, make_batches
from train_sft import sft_loss


@pytest.fixture
def policy(tiny):
    return from_pretrained(tiny.root / "model").double()


@pytest.fixture
def rollouts(tiny):
    """Three groups of four; rewards of completions and steps that differ."""
    found = made_up_rollouts(tiny.tokenizer)
    draw = torch.Generator().manual_seed(5)
    for number, one in enumerate(found):
        one.rule = [1.0, 0.0, float(number == 1), 1.0]
        one.rewards = torch.rand(4, generator=draw).tolist()
        one.step_ends = [
            [len(s.ids) - 1] if len(s.ids) < 3 else [1, len(s.ids) - 1] for s in one.samples
        ]
        one.step_rewards = [
            torch.rand(len(ends), generator=draw).tolist() for ends in one.step_ends
        ]
        for sample in one.samples:
            sample.mask = [True] * len(sample.ids)
    return found


def assert_same_gradient(policy, objective: torch.Tensor) -> None:
    """The gradients that a trainer has left are minus those of `objective`."""
    found = gradients(policy)
    objective.backward()
    expected = gradients(policy)
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0 and (found[name] + gradient).abs().max() <= 1e-10 * scale, name


def weighted(policy, rollouts, coefficient) -> torch.Tensor:
    """Eq. 5: the mean over completions of 1/|o| sum_t GC_t log pi(o_t); coefficient(one, g, logp) gives GC [|o|]."""
    terms = []
    for one in rollouts:
        for g, sample in enumerate(one.samples):
            logp = logprobs(policy, one.prompt, sample.ids)
            terms.append((coefficient(one, g, logp.detach()) * logp).mean())
    return torch.stack(terms).mean()


def test_sft(policy, rollouts):
    examples = [(one.prompt, [sample.ids]) for one in rollouts for sample in one.samples]
    tokens = sum(len(ids) for _, (ids,) in examples)
    sft_loss(policy, examples, tokens).backward()
    parts = [logprobs(policy, prompt, ids).sum() for prompt, (ids,) in examples]
    assert_same_gradient(policy, torch.stack(parts).sum() / tokens)


@pytest.mark.parametrize("data_source", ["sft", "policy"])
def test_rft_and_online_rft(policy, rollouts, data_source, monkeypatch):
    config = Config(algorithm="rft", data_source=data_source)
    in_float64(monkeypatch)
    for one in rollouts:
        one.advantages = advantages(config, one)
    grpo_gradient(policy, make_batches(rollouts, config, None, World()), config, True)
    objective = weighted(
        policy, rollouts, lambda one, g, logp: train_grpo.rft_coefficient(one.rule[g])
    )
    assert_same_gradient(policy, objective)


@pytest.mark.parametrize("supervision", ["outcome", "process"])
def test_grpo(tiny, policy, rollouts, supervision, monkeypatch):
    reference = from_pretrained(tiny.root / "base").double()
    config = Config(supervision=supervision, reward="process_model", beta=0.3)
    in_float64(monkeypatch)
    for one in rollouts:
        one.advantages = advantages(config, one)
    grpo_gradient(policy, make_batches(rollouts, config, reference, World()), config, True)

    def coefficient(one, g, logp):
        advantage = torch.tensor(one.advantages[g], dtype=torch.float64).expand(len(logp))
        with torch.no_grad():
            ref = logprobs(reference, one.prompt, one.samples[g].ids)
        return grpo_coefficient(advantage, logp, ref, config.beta)

    assert_same_gradient(policy, weighted(policy, rollouts, coefficient))


def in_float64(monkeypatch):
    """The weights and advantages of micro-batches are float32: here their means are exact."""

    class Exact(train_grpo.MicroBatch):
        def __init__(self, parts, config, completions, tokens, device):
            super().__init__(parts, config, completions, tokens, device)
            lengths = torch.bincount(self.batch.completion)
            self.weight = (1 / (lengths.double() * completions))[self.batch.completion]
            values = [
                (u.rollout.advantages[g], len(u.rollout.samples[g].ids))
                for u in parts
                for g in u.members
            ]
            own = [torch.tensor(a, dtype=torch.float64).expand(n) for a, n in values]
            self.advantage = torch.cat(own)

    monkeypatch.setattr(train_grpo, "MicroBatch", Exact)
