"""Equation 5, in float64: the gradient of every loss is the mean over tokens of coefficient times grad log pi.

The loss is the trainer's own, through the model and autograd; the other side is the short coefficient function that
stands beside it, with each token's log-prob taken from its sequence alone.
"""

import pytest
import torch
from training import gradients, logprobs, made_up_rollouts, micro_batches

from runtime.distributed import World
from runtime.hf import from_pretrained
from train_grpo import Config, advantages, grpo_gradient
from train_sft import Example, sft_loss


@pytest.fixture
def policy(tiny):
    return from_pretrained(tiny.root / "model").double()


@pytest.fixture
def rollouts(tiny):
    """Three groups of four; rewards of completions and steps that differ."""
    found = made_up_rollouts(tiny.tokenizer)
    draw = torch.Generator().manual_seed(5)
    for number, one in enumerate(found):
        one.verdicts = [1.0, 0.0, float(number == 1), 1.0]
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
    examples = [
        Example(one.prompt, sample.ids, [True] * len(sample.ids))
        for one in rollouts
        for sample in one.samples
    ]
    tokens = sum(len(one.response) for one in examples)
    sft_loss(policy, examples, tokens).backward()
    parts = [logprobs(policy, one.prompt, one.response).sum() for one in examples]
    assert_same_gradient(policy, torch.stack(parts).sum() / tokens)


@pytest.mark.parametrize("algorithm", ["rft", "online_rft"])
def test_rft_and_online_rft(policy, rollouts, algorithm):
    """Eq. 10: the coefficient is 1 where the answer is right, else 0."""
    config = Config(algorithm=algorithm)
    grpo_gradient(policy, in_float64(rollouts, config, None), config)
    objective = weighted(policy, rollouts, lambda one, g, logp: one.verdicts[g])
    assert_same_gradient(policy, objective)


@pytest.mark.parametrize("supervision", ["outcome", "process"])
def test_grpo(tiny, policy, rollouts, supervision):
    """Eq. 21: the coefficient is A + beta (pi_ref / pi - 1)."""
    reference = from_pretrained(tiny.root / "base").double()
    config = Config(supervision=supervision, reward="process_model", beta=0.3)
    grpo_gradient(policy, in_float64(rollouts, config, reference), config)

    def coefficient(one, g, logp):
        advantage = torch.tensor(one.advantages[g], dtype=torch.float64).expand(len(logp))
        with torch.no_grad():
            ref = logprobs(reference, one.prompt, one.samples[g].ids)
        return advantage + config.beta * torch.expm1(ref - logp)

    assert_same_gradient(policy, weighted(policy, rollouts, coefficient))


def in_float64(rollouts, config, reference) -> list:
    """Micro-batches whose weights and advantages, which are float32, are exact here."""
    for one in rollouts:
        one.advantages = advantages(one, config)
    batches = micro_batches(rollouts, config, reference, World())
    completions = sum(len(one.samples) for one in rollouts)
    for micro in batches:
        micro.weight = (1 / (micro.lengths.double() * completions))[micro.completion]
        rows = []
        for r, g in micro.members:
            length = len(rollouts[r].samples[g].ids)
            rows.append(torch.tensor(rollouts[r].advantages[g]).double().expand(length))
        micro.advantage = torch.cat(rows)
    return batches
