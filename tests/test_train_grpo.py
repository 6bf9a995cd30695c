"""GRPO: rollouts, equation 3 and its gradient, metrics, the reference, resuming, two processes, bad input."""

import json
import re
from dataclasses import replace
from runtime.options import parse, read_toml

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import (
    COT,
    POT,
    PROBLEMS,
    assert_close,
    assert_same_run,
    assert_same_start,
    gradients,
    in_tests,
    logprobs,
    made_up_rollouts,
    metrics,
    micro_batches,
    one_error,
    options,
    refusal,
    run,
    start,
)

import kernels
import rollout
import runtime.run
import train_grpo
import train_reward
from batch import pack_completions, pack_rollouts, token_logprobs
from data import prompts
from data.io import read_jsonl
from data.problems.problem import Problem
from data.sandbox.sandbox import Sandbox
from data.train_tokenizer import train
from generate import Sample, Sampling
from model import ModelConfig
from reward import RewardModel
from rollout import Sampler, judge, load_rollouts, sample_rollouts
from runtime.distributed import World, seeded, shuffled
from runtime.hf import from_pretrained, save_pretrained
from runtime.metrics import rollout_metrics
from train_grpo import (
    Config,
    Rollout,
    advantages,
    completion_rewards,
    grpo_gradient,
    update,
)

POINTS = [
    [
        "train_grpo.save_rollouts",
        2,
        "after",
    ],  # step 2 is sampled but not learned from, before any checkpoint
    [
        "runtime.run.Run.save_reference",
        1,
        "after",
    ],  # the second iteration begins: its reference is written, not yet read
    [
        "train_grpo.clip_grad_norm",
        11,
        "after",
    ],  # between the two updates of step 6, which continues the third iteration
    [
        "runtime.run.Run.log",
        4,
        "after",
    ],  # step 9, two references later than the checkpoint of step 5
    ["runtime.run.Metrics.summary", 1, "before"],  # at the very end
]


@pytest.fixture(scope="module")
def runs(killed):
    return killed("grpo", POINTS)


REWARD_POINTS = [
    ["train_reward.save_rollouts", 1, "after"],  # the samples for the reward model are written
    ["runtime.run.Run.log", 6, "after"],  # in the reward model's own training, after its checkpoint
    ["train_reward.main", 1, "after"],  # it is trained, but not yet used
    ["train_grpo.sample_rollouts", 1, "after"],  # the second iteration's first step
]


@pytest.fixture(scope="module")
def iterative(killed):
    return killed("iterative", REWARD_POINTS)


@pytest.fixture
def policy(tiny):
    return from_pretrained(tiny.root / "model")


def moved(model, scale: float, seed: int = 0):
    """The same model with noise on its weights."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=draw))
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


@given(st.integers(1, 30), st.integers(0, 5))
def test_every_problem_once_an_epoch(count, seed):
    order = shuffled(count, seed)
    for _ in range(3):
        assert sorted(next(order) for _ in range(count)) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = shuffled(30, 0), shuffled(30, 1)
    orders = [[next(order) for _ in range(30)] for order in (first, first, second)]
    assert len({tuple(order) for order in [*orders, range(30)]}) == 4


def collect(config, step, sampler, problems, reward_model=None) -> list[Rollout]:
    """What train_grpo.main does in a step before it learns."""
    seed = seeded(config.seed, "rollout", step)
    sampling = Sampling(config.samples, config.temperature, 1.0, config.max_new_tokens, seed=seed)
    rollouts = sample_rollouts(sampler, problems, config.formats, sampling)
    judge(sampler, rollouts)
    if reward_model is not None:
        reward_model.score(rollouts, config.micro_tokens, World())
    for one in rollouts:
        one.rewards = completion_rewards(one)
        one.advantages = advantages(one, config)
    return rollouts


@pytest.fixture(scope="module")
def sampled(tiny):
    """One rollout of all six questions, prompts of uneven length, both formats, at temperature 0.7."""
    config = Config(
        formats=["cot", "pot"],
        samples=5,
        temperature=0.7,
        max_new_tokens=14,
        max_rows=7,
        seed=3,
        eps=0.0,
    )
    with Sandbox(workers=1) as sandbox:
        model = from_pretrained(tiny.root / "model")
        sampler = Sampler(model, tiny.tokenizer, max_rows=7, sandbox=sandbox)
        return config, collect(config, 1, sampler, PROBLEMS)


def test_rewards_belong_to_their_question_and_sample(tiny, sampled):
    config, rollouts = sampled
    assert [one.problem for one in rollouts] == PROBLEMS
    assert [one.format for one in rollouts] == ["cot", "pot"] * 3
    said = {text: answer for answer, text in (*COT.items(), *POT.items())}
    for one in rollouts:
        assert tiny.tokenizer.decode(one.prompt) == prompts.prompt(one.problem.question, one.format)
        for sample, reward in zip(one.samples, one.rewards, strict=True):
            answer = said.get(tiny.tokenizer.decode(sample.ids).strip())
            if answer:  # else cut off, or something that nobody taught it
                assert reward == float(answer == one.problem.answer)
        mean = sum(one.rewards) / 5
        deviation = (sum((reward - mean) ** 2 for reward in one.rewards) / 4) ** 0.5
        expected = [(reward - mean) / deviation if deviation else 0 for reward in one.rewards]
        assert one.advantages == pytest.approx(expected, abs=1e-6)
    rewards = [reward for one in rollouts for reward in one.rewards]
    assert (
        5 < sum(rewards) < 25 and len({tuple(one.rewards) for one in rollouts}) > 2
    )  # the test saw both


def test_a_format_may_come_several_times(sampled, policy, tiny, monkeypatch):
    """cot,cot,pot: two questions of three, each sampled once."""
    config, asked, generate = (
        replace(sampled[0], formats=["cot", "cot", "pot"]),
        [],
        rollout.generate,
    )
    monkeypatch.setattr(
        rollout,
        "generate",
        lambda *a, keys, **b: asked.extend(keys) or generate(*a, keys=keys, **b),
    )
    with Sandbox(workers=1) as sandbox:
        rollouts = collect(config, 1, Sampler(policy, tiny.tokenizer, sandbox=sandbox), PROBLEMS)
    assert [one.format for one in rollouts] == ["cot", "cot", "pot"] * 2
    assert asked == [0, 1, 3, 4, 2, 5]


def test_the_trainer_scores_samples_as_the_sampler_did(sampled, policy):
    """Pairing again: log-probs of a sample after another question's prompt are others."""
    config, rollouts = sampled
    assert (
        len({len(one.prompt) for one in rollouts}) > 3
        and len({len(s.ids) for r in rollouts for s in r.samples}) > 3
    )
    told = torch.tensor([p for one in rollouts for sample in one.samples for p in sample.logprobs])
    for shared in (True, False):
        batch = pack_completions(
            [(one.prompt, [s.ids for s in one.samples]) for one in rollouts], shared
        )
        with torch.no_grad():
            found, _ = token_logprobs(policy, batch, config.temperature)
        assert (found - told).abs().max() <= 1e-5
    crossed = logprobs(policy, rollouts[2].prompt, rollouts[0].samples[0].ids, 0.7)
    assert (crossed - torch.tensor(rollouts[0].samples[0].logprobs)).abs().max() > 1e-3


def test_truncated_samples_are_counted(sampled):
    config, rollouts = sampled
    cut = [len(s.ids) == 14 and s.finish == "length" for one in rollouts for s in one.samples]
    assert 0 < sum(cut) < 30 and rollout_metrics(rollouts)["truncated"] == pytest.approx(
        sum(cut) / 30
    )


def test_samples_depend_on_seed_step_and_place_alone(tiny, sampled, policy):
    config, rollouts = sampled
    config = replace(config, formats=["cot"], max_rows=64)
    cot = [rollouts[0].problem, rollouts[1].problem, rollouts[2].problem]

    def ids(step, seed=3):
        found = collect(
            replace(config, seed=seed), step, Sampler(policy, tiny.tokenizer, max_rows=64), cot
        )
        return [[sample.ids for sample in one.samples] for one in found]

    expected = [[sample.ids for sample in rollouts[i].samples] for i in (0, 2)]
    assert [ids(1)[0], ids(1)[2]] == expected
    assert ids(2) != ids(1) != ids(1, seed=4)


def test_rollouts_are_read_as_they_were_written(tiny, sampled, tmp_path):
    _, rollouts = sampled
    rollouts = [*rollouts, *made_up_rollouts(tiny.tokenizer)]
    rollouts[0] = replace(rollouts[0], rewards=[0.1 + 0.2, float("inf"), -1e-300, 3.0, 1 / 3])
    rollouts[1] = replace(
        rollouts[1], problem=Problem("x", 'Wie "viel"?\n多少', "½", "so", "book", "de")
    )
    rollout.save_rollouts(tmp_path / "step.jsonl", rollouts, tiny.tokenizer)
    assert load_rollouts(tmp_path / "step.jsonl") == rollouts
    rows = [row for _, row in read_jsonl(tmp_path / "step.jsonl")]
    assert [response["text"] for response in rows[2]["responses"]] == [
        tiny.tokenizer.decode(sample.ids) for sample in rollouts[2].samples
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Equation 3


def naive_loss(model, old, reference, rollouts, config) -> torch.Tensor:
    """Minus equation 3, written down: a loop over questions, outputs and tokens. `old` None: the policy itself."""
    objectives, counts = [], []
    for one in rollouts:
        for sample, advantage in zip(one.samples, one.advantages, strict=True):
            chosen = torch.tensor(sample.mask)
            if not chosen.any():
                continue
            if isinstance(advantage, list):  # process supervision: one a token
                advantage = torch.tensor(advantage, dtype=torch.float64)[chosen]
            new, before, ref = (
                logprobs(m, one.prompt, sample.ids, config.temperature)[chosen].double()
                for m in (model, old or model, reference or model)
            )
            ratio = (new - before.detach()).exp()
            clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            kl = (ref.detach() - new).exp() - (ref.detach() - new) - 1 if reference else 0.0
            objectives.append(
                (torch.minimum(ratio * advantage, clipped * advantage) - config.beta * kl).sum()
            )
            counts.append(int(chosen.sum()))
    if config.normalize == "grpo":
        return -sum(o / n for o, n in zip(objectives, counts, strict=True)) / len(counts)
    return -sum(objectives) / (
        sum(counts) if config.normalize == "dapo" else len(counts) * config.max_new_tokens
    )


@pytest.mark.parametrize("normalize", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("shared, micro_tokens", [(True, 1000), (True, 60), (False, 60)])
def test_gradient_of_equation_3(tiny, policy, normalize, shared, micro_tokens):
    """At both updates of mu = 2, with tool tokens masked, a completion all masked, and a reference of its own."""
    reference = moved(from_pretrained(tiny.root / "model"), 0.05, seed=1)
    config = Config(
        normalize=normalize,
        micro_tokens=micro_tokens,
        temperature=0.7,
        beta=0.3,
        mu=2,
        clip_low=0.1,
        clip_high=0.2,
        max_new_tokens=11,
    )
    rollouts = made_up_rollouts(tiny.tokenizer)
    batches = micro_batches(rollouts, config, reference, World(), shared)
    assert (len(batches) > 1) == (micro_tokens == 60)
    old = from_pretrained(tiny.root / "model")
    for first in (True, False):
        expected = naive_loss(policy, None if first else old, reference, rollouts, config)
        expected.backward()
        wanted = gradients(policy)
        sums = grpo_gradient(policy, batches, config)
        assert sums["loss"].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
        assert_close(gradients(policy), wanted)
        moved(policy, 0.02)  # the optimizer's step
        assert (
            first or 0.1 < sums["clip"] / sums["count"] < 0.9
        )  # the second update did clip, and not only


def test_without_beta_there_is_no_reference(tiny, policy):
    config = Config(beta=0.0, mu=1)
    rollouts = made_up_rollouts(tiny.tokenizer, seed=1)
    naive_loss(policy, None, None, rollouts, config).backward()
    wanted = gradients(policy)
    grpo_gradient(policy, micro_batches(rollouts, config, None, World()), config)
    assert_close(gradients(policy), wanted)


def test_an_advantage_for_each_token(tiny, policy):
    """Process supervision: eq. 3 with A_i,t."""
    config, rollouts = Config(beta=0.1, mu=1, micro_tokens=60), made_up_rollouts(tiny.tokenizer)
    draw = torch.Generator().manual_seed(4)
    for one in rollouts:
        one.advantages = [
            torch.randn(len(sample.ids), generator=draw).tolist() for sample in one.samples
        ]
    reference = moved(from_pretrained(tiny.root / "model"), 0.05, seed=1)
    naive_loss(policy, None, reference, rollouts, config).backward()
    wanted = gradients(policy)
    grpo_gradient(policy, micro_batches(rollouts, config, reference, World()), config)
    assert_close(gradients(policy), wanted)


@pytest.mark.parametrize("algorithm", ["rft", "online_rft"])
def test_rft_learns_what_is_right(tiny, policy, algorithm):
    """Eq. 8: the mean over completions of I(o) / |o| times the sum of log-probs, at every one of mu updates."""
    config = Config(
        algorithm=algorithm,
        mu=2,
        micro_tokens=60,
        temperature=0.7,
        clip_low=0.01,
    )
    rollouts = made_up_rollouts(tiny.tokenizer)
    for one in rollouts:
        one.verdicts = [1.0, 0.0, 1.0, 0.0]
        one.advantages = advantages(one, config)
    assert rollouts[0].advantages == [1.0, 0.0, 1.0, 0.0]
    batches = micro_batches(rollouts, config, None, World())
    for _ in range(2):
        means = [
            right * logprobs(policy, one.prompt, s.ids, 0.7)[torch.tensor(s.mask)].mean()
            for one in rollouts
            for s, right in zip(one.samples, one.verdicts, strict=True)
            if any(s.mask)
        ]
        (-torch.stack(means).mean()).backward()
        wanted = gradients(policy)
        grpo_gradient(policy, batches, config)
        assert_close(gradients(policy), wanted)
        moved(policy, 0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Learned rewards


def test_process_advantages_by_hand():
    """Steps [1 0 1], [0 0], [1 1 1 0]: mean 5/9, deviation 0.527046; sums of the steps that end at or after a token."""
    one = group([0.0] * 3, [], [6, 3, 4])
    one.step_rewards = [[1.0, 0.0, 1.0], [0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    one.step_ends = [[1, 3, 5], [0, 2], [0, 1, 2, 3]]
    found = advantages(one, Config(supervision="process", reward="process_model", eps=0.0))
    assert found[0] == pytest.approx([0.6325, 0.6325, -0.2108, -0.2108, 0.8433, 0.8433], abs=1e-4)
    assert found[1] == pytest.approx([-2.1082, -1.0541, -1.0541], abs=1e-4)
    assert found[2] == pytest.approx([1.4757, 0.6325, -0.2108, -1.0541], abs=1e-4)


@pytest.mark.parametrize("supervision", ["outcome", "process"])
def test_a_reward_model_judges_the_samples(tiny, policy, supervision):
    config = Config(
        reward="process_model",
        supervision=supervision,
        samples=5,
        temperature=0.9,
        max_new_tokens=14,
        eps=0.0,
    )
    model = RewardModel(tiny.root / "process", "process", tiny.tokenizer)
    sampler = Sampler(policy, tiny.tokenizer)
    rollouts = collect(config, 1, sampler, PROBLEMS, model)
    ruled = replace(config, reward="rule", supervision="outcome")
    plain = collect(ruled, 1, sampler, PROBLEMS)
    assert [one.verdicts for one in rollouts] == [one.rewards for one in plain]
    for one in rollouts:
        (scores,) = model([one.group])
        assert one.rewards == pytest.approx([min(row) for row in scores], abs=1e-5)
        if supervision == "outcome":
            rewards = torch.tensor(one.rewards, dtype=torch.float64)
            expected = (
                (rewards - rewards.mean()) / rewards.std()
                if len(set(one.rewards)) > 1
                else 0 * rewards
            )
            assert one.advantages == pytest.approx(expected.tolist(), abs=1e-5)
        else:
            pooled = torch.tensor(
                [score for row in one.step_rewards for score in row], dtype=torch.float64
            )
            for sample, row, ends, found in zip(
                one.samples, one.step_rewards, one.step_ends, one.advantages, strict=True
            ):
                steps = [((score - pooled.mean()) / pooled.std()).item() for score in row]
                sums = [
                    sum(s for s, end in zip(steps, ends, strict=True) if end >= t)
                    for t in range(len(sample.ids))
                ]
                assert found == pytest.approx(sums, abs=1e-4)
    assert len({len(ends) for one in rollouts for ends in one.step_ends}) > 1  # steps there were
    metrics = rollout_metrics(rollouts)
    assert (
        metrics["gap"] == pytest.approx(metrics["reward"] - metrics["verdict"])
        and metrics["gap"] != 0
    )


def test_groups_are_cut_to_the_budget(tiny):
    rollouts = made_up_rollouts(tiny.tokenizer)
    for budget in (1, 30, 45, 1000):
        batches = pack_rollouts(rollouts, budget, World())
        members = [member for batch in batches for member in batch.members]
        assert sorted(members) == [(r, g) for r in range(3) for g in range(4)]
        for batch in batches:
            prompts = {r: len(rollouts[r].prompt) for r, _ in batch.members}
            completions = [len(rollouts[r].samples[g].ids) for r, g in batch.members]
            tokens = sum(prompts.values()) + sum(completions)
            assert tokens <= budget or len(completions) == 1
        assert (len(batches) == 12) == (budget == 1) and (len(batches) == 1) == (budget == 1000)


def test_gradients_do_not_depend_on_micro_batches_or_processes(alone, together):
    assert_close(alone[4]["grpo"], alone[1]["grpo"])
    assert_close(torch.load(together / "gradients.pt")["grpo"], alone[1]["grpo"])


# ---------------------------------------------------------------------------------------------------------------------
# Metrics, by hand


def group(rewards, advantages, lengths=None, finish=None) -> Rollout:
    samples = [
        Sample([7] * n, [-1.0] * n, [True] * n, "eos") for n in lengths or [1] * len(rewards)
    ]
    for sample, how in zip(samples, finish or [], strict=False):
        sample.finish = how
    problem = Problem("p", "q", "1")
    return Rollout(problem, "cot", [5, 6], samples, list(rewards), rewards, advantages)


def test_update_metrics(monkeypatch):
    """Two completions of [2, 3] tokens, the last one's second a tool's. Log-probs are what the test says they are."""
    one = group([1.0, 0.0], [1.0, -1.0], [2, 3])
    one.samples[1].mask[1] = False
    #            A = 1 -----  A = -1 -------------   third: a tool's, must not count
    first = torch.tensor([-1.0, -2.0, -1.0, -9.0, -3.0])
    ratios = torch.tensor([1.5, 0.5, 1.5, 1e6, 0.5])  # cut off, not, not, -, cut off
    reference = first + torch.tensor([0.0, 0.1, -0.2, 50.0, 0.0])
    table = [reference, first, first + ratios.log()]
    model = torch.nn.Linear(1, 5, bias=False)
    model.config = ModelConfig(5, width=2, layers=1, heads=1, kv_heads=1, ffn=1)
    steps = []

    def told(hidden, head, targets, temperature, entropy=False):
        assert temperature == 0.5
        # gradients: those of the log-probs
        logp = table.pop(0) + model.weight[:, 0] - model.weight[:, 0].detach()
        return logp, torch.tensor([0.1, 0.2, 0.3, 7.0, 0.4]) if entropy else None

    class Optimizer:
        def step(self):
            steps.append(model.weight.grad[:, 0].clone())

        def zero_grad(self, set_to_none):
            model.weight.grad = None

    monkeypatch.setattr(train_grpo, "logprobs", told)
    hidden = torch.zeros(1, requires_grad=True)
    monkeypatch.setattr(train_grpo, "hidden_states", lambda *args: hidden)
    config = Config(mu=2, beta=0.5, temperature=0.5, max_grad_norm=100.0)
    [micro] = batches = micro_batches([one], config, None, World())
    micro.ref_logp, model.head_weight = table.pop(0), None
    with kernels.plain():
        found = update(model, Optimizer(), batches, config, World())
    kl = [torch.tensor(d).expm1().item() - d for d in (0.0, 0.1, -0.2, 0.0)]
    # each completion's mean, then theirs: 1/4 a token. At the first update ratios are 1 and advantages cancel.
    slope = torch.tensor([1.0, 1 + 0.5 * 0.105171, -1 - 0.5 * 0.181269, 0.0, -1.0]) / 4
    expected = {
        "loss": 0.5 * sum(kl) / 4,
        "kl": sum(kl) / 4,
        "entropy": (0.1 + 0.2 + 0.3 + 0.4) / 4,
        "grad_norm": slope.norm().item(),
        "ratio": (1.5 + 0.5 + 1.5 + 0.5) / 4,  # these two of the last update
        "clip_fraction": 0.5,
    }
    assert found == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(steps[0], -slope, rtol=1e-4, atol=1e-7)
    # the second: cut-off tokens have no gradient but the KL's, where ref / policy is now exp(d) / ratio
    d = (reference - first).exp() / ratios - 1
    slope = torch.tensor([0.0, 0.5, -1.5, 0.0, 0.0]) / 4 + 0.5 / 4 * d.where(
        torch.tensor([1, 1, 1, 0, 1]) == 1, 0.0
    )
    torch.testing.assert_close(steps[1], -slope, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


def test_a_killed_run_is_the_same_run(runs):
    out, log = runs
    assert_same_run(out / "whole", out / "killed")
    # what a part had sampled, the next ones read: every step is sampled once
    assert [part["sampled"] for part in log] == [
        ["1", "2"],
        [],
        ["3", "4", "5", "6"],
        ["7", "8", "9"],
        ["10"],
        [],
    ]
    assert [len(part["checkpoints"]) for part in log] == [0, 0, 1, 1, 2, 2]
    for path in sorted((out / "whole" / "rollouts").iterdir()):
        assert path.read_bytes() == (out / "killed" / "rollouts" / path.name).read_bytes()


def test_the_run_itself(runs, tiny):
    out, _ = runs
    rows = metrics(out / "whole")
    assert [row["step"] for row in rows] == list(range(11))
    # the reference becomes the policy at the start of each iteration of two steps, and at no other time
    assert [row["step"] for row in rows[1:] if row["kl"] == 0.0] == [1, 3, 5, 7, 9]
    assert all(row["kl"] > 1e-4 for row in rows[2::2])
    assert [row["step"] for row in rows if "valid/cot" in row and "valid/pot" in row] == [
        0,
        3,
        6,
        9,
        10,
    ]
    saved = [load_rollouts(path) for path in sorted((out / "whole" / "rollouts").iterdir())]
    assert len(saved) == 10 and all(
        len(step) == 4 and len(one.samples) == 4 for step in saved for one in step
    )
    order = shuffled(len(PROBLEMS), 0)
    for step, row in zip(saved, rows[1:], strict=True):
        assert [one.problem.id for one in step] == [PROBLEMS[next(order)].id for _ in range(4)]
        assert row["reward"] == pytest.approx(sum(r for one in step for r in one.rewards) / 16)
    ids = [[sample.ids for one in step for sample in one.samples] for step in saved]
    assert all(ids[i] != ids[j] for i in range(10) for j in range(i))


def test_two_processes_train_the_same_model(runs, together):
    """Until the first update: later, rounding may change a sampled token. Gradients are compared above."""
    out, _ = runs
    paths, different = sorted((out / "whole" / "rollouts").iterdir()), 0
    for number, path in enumerate(paths):
        one, two = (
            load_rollouts(at / path.name) for at in (path.parent, together / "grpo" / "rollouts")
        )
        assert [r.problem.id for r in one] == [r.problem.id for r in two]
        if number == 0:
            assert [s.ids for r in one for s in r.samples] == [
                s.ids for r in two for s in r.samples
            ]
        longest = [max(len(sample.ids) for sample in group.samples) for group in two]
        different += max(longest[::2]) != max(
            longest[1::2]
        )  # of the first and of the second process
    assert different  # one decoded on while the other waited
    rows = metrics(together / "grpo"), metrics(out / "whole")
    assert_same_start(*rows, later=("clip_fraction", "ratio"))


def test_a_killed_iterative_run_is_the_same_run(iterative):
    out, log = iterative
    assert_same_run(out / "whole", out / "killed")
    for name in ("reward_data/iteration_1.jsonl", "reward_data/iteration_2.jsonl"):
        assert (out / "whole" / name).read_bytes() == (out / "killed" / name).read_bytes()
    for name in ("reward_1", "reward_2"):
        assert_same_run(out / "whole" / name, out / "killed" / name)
    assert [part["sampled"] for part in log] == [["1", "2"], [], [], ["3"], ["3", "4", "5", "6"]]


def test_the_reward_model_learns_between_iterations(iterative, tiny):
    """New samples of the policy as it then is, a quarter of history with them, from the reward model before."""
    whole = iterative[0] / "whole"
    for iteration in (1, 2):
        summary = json.loads((whole / f"reward_{iteration}" / "summary.json").read_text())
        assert summary["questions"] == 4 and summary["replayed"] == 1
        config = read_toml(whole / f"reward_{iteration}" / "config.toml")
        before = tiny.root / "process" if iteration == 1 else whole / "reward_1" / "model"
        assert config["init"] == str(before) and len(config["history"]) == iteration
        data = load_rollouts(whole / "reward_data" / f"iteration_{iteration}.jsonl")
        assert len(data) == 3 and all(
            len(one.samples) == 4 and len(one.step_labels) == 4 for one in data
        )
    rows = metrics(whole)
    assert [row["step"] for row in rows[1:] if row["kl"] == 0.0] == [
        1,
        3,
        5,
    ]  # the reference became the policy
    models = [tiny.root / "process", whole / "reward_1" / "model", whole / "reward_2" / "model"]
    for step, directory in ((1, models[0]), (3, models[1]), (6, models[2])):
        judge = RewardModel(directory, "process", tiny.tokenizer)
        for one in load_rollouts(whole / "rollouts" / f"step_{step:06d}.jsonl"):
            (scores,) = judge([(one.prompt, [sample.ids for sample in one.samples])])
            for found, expected in zip(one.step_rewards, scores, strict=True):
                assert found == pytest.approx(expected, abs=1e-5)


def test_two_processes_run_the_same_iterations(iterative, together):
    """The samples before the first update. Later, rounding may change a sampled token."""
    whole, two = iterative[0] / "whole", together / "iterative"
    name = "rollouts/step_000001.jsonl"
    for first, second in zip(load_rollouts(whole / name), load_rollouts(two / name), strict=True):
        assert [s.ids for s in first.samples] == [s.ids for s in second.samples]
        assert first.rewards == pytest.approx(second.rewards, abs=1e-4)
    assert (two / "reward_2" / "model" / "model.safetensors").exists() and len(metrics(two)) == len(
        metrics(whole)
    )


@pytest.mark.parametrize("algorithm", ["rft", "online_rft", "grpo"])
def test_who_samples(tiny, tmp_path, algorithm):
    """rft: the model of --init samples every step; else the one being trained."""
    changes = dict(algorithm=algorithm, iterations=1, steps=3, mu=1, valid="", lr=3e-2)
    to = run("grpo", tiny.root, tmp_path / "run", **changes)
    rollouts = load_rollouts(to / "rollouts" / "step_000003.jsonl")
    model, off = from_pretrained(tiny.root / "model"), 0.0
    with torch.no_grad():
        for one in rollouts:
            for sample in one.samples:
                found = logprobs(model, one.prompt, sample.ids, 0.9)
                off = max(off, (found - torch.tensor(sample.logprobs)).abs().max().item())
    assert (off < 1e-4) == (algorithm == "rft")
    if algorithm != "grpo":
        assert all(one.advantages == one.verdicts == one.rewards for one in rollouts)
        assert all(row["kl"] == 0 and row["ratio"] == 1 for row in metrics(to))


def test_a_run_without_signal_stops(tiny, tmp_path, monkeypatch, capsys):
    """After PATIENCE steps in a row; saved, so that the same command goes on."""
    monkeypatch.setattr(runtime.run, "PATIENCE", 3)
    (tmp_path / "never.jsonl").write_text('{"id": "a", "question": "Ann?", "answer": "77"}\n')
    changes = dict(
        problems=tmp_path / "never.jsonl",
        iterations=1,
        steps=5,
        valid="",
        save_every=100,
    )
    arguments = options("grpo", tiny.root, tmp_path / "run", **changes)
    said = refusal("grpo", arguments, monkeypatch, capsys)
    assert re.fullmatch(
        "step 3: no signal in 3 steps, .*; the same command continues from here", said
    )
    to = run("grpo", tiny.root, tmp_path / "run", **changes)
    assert [row["step"] for row in metrics(to)] == [1, 2, 3, 4, 5]


def test_rollouts_of_other_problems_are_refused(tiny, tmp_path, monkeypatch, capsys):
    """A resumed step takes samples from disk only where they are of its questions."""
    (tmp_path / "p.jsonl").write_text((tiny.root / "problems.jsonl").read_text())
    changes = dict(problems=tmp_path / "p.jsonl", iterations=1, steps=1, valid="")
    to = run("grpo", tiny.root, tmp_path / "run", **changes)
    for path in to.glob("step_*"):
        path.rename(tmp_path / path.name)
    (tmp_path / "p.jsonl").write_text((tiny.root / "problems.jsonl").read_text().replace("?", "??"))
    said = refusal("grpo", options("grpo", tiny.root, to, **changes), monkeypatch, capsys)
    assert said == f"{to}/rollouts/step_000001.jsonl: sampled from other problems; use another --to"


def test_rewards_that_are_not_finite_are_said(tiny, tmp_path, monkeypatch, capsys):
    class Broken(RewardModel):
        def __call__(self, groups, micro_tokens):
            return [[[float("nan")], *rows[1:]] for rows in super().__call__(groups, micro_tokens)]

    monkeypatch.setattr(train_reward, "RewardModel", Broken)
    changes = dict(
        reward="process_model", reward_model=tiny.root / "process", iterations=1, steps=2, valid=""
    )
    with in_tests():
        train_grpo.main(
            parse(Config, options("grpo", tiny.root, tmp_path / "run", formats="cot", **changes))
        )
    assert "step 1: 4 rewards are not finite; they count for nothing\n" in capsys.readouterr().out
    for one in load_rollouts(tmp_path / "run" / "rollouts" / "step_000001.jsonl"):
        assert one.advantages[0] == 0.0 and any(one.advantages[1:])


def test_completions_of_a_single_line_have_one_step(tiny, tmp_path):
    changes = dict(
        supervision="process",
        reward="process_model",
        reward_model=tiny.root / "process",
        max_new_tokens=1,
    )
    changes |= dict(iterations=1, steps=1, valid="", formats="cot")
    with in_tests():
        train_grpo.main(parse(Config, options("grpo", tiny.root, tmp_path / "run", **changes)))
    assert metrics(tmp_path / "run")[0]["steps"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# Bad input

LINE = '{"id": "a", "question": "Ann?", "answer": "1"}\n'


@pytest.mark.parametrize(
    "text, changes, message",
    [
        (None, {}, "{}/bad.jsonl: cannot be read .*"),
        ("", {}, "{}/bad.jsonl:.*"),
        (LINE + '{"id": \n', {}, "{}/bad.jsonl:2: not valid JSON .*"),
        (
            LINE + '{"id": "b", "question": "Bob?"}\n',
            {},
            "{}/bad.jsonl:2: a problem without 'answer'; .*",
        ),
        (
            LINE.replace("Ann", "Ann " * 99),
            {},
            "problem a: the prompt is as long as the model's context, 96; .*",
        ),
        (LINE, dict(valid="{}/none.jsonl"), "{}/none.jsonl: cannot be read .*"),
        (LINE, dict(init="{}/none"), "{}/none.*"),
        (
            LINE,
            dict(init="{}/mixed"),
            "{}/mixed: the tokenizer has 500 ids, the embedding only 400 rows; .*",
        ),
        (LINE, dict(to=""), "--to is needed: .*"),
        (
            LINE,
            dict(normalize="mean"),
            "--normalize mean: unknown; choose grpo, dapo or dr_grpo",
        ),
        (LINE, dict(scale="var"), "--scale var: unknown; choose std or none"),
        (LINE, dict(ddof=2), "--ddof .*"),
        (LINE, dict(algorithm="ppo"), "--algorithm ppo: unknown; choose grpo, online_rft or rft"),
        (
            LINE,
            dict(reward="model"),
            "--reward model: unknown; choose rule, outcome_model or process_model",
        ),
        (LINE, dict(reward="outcome_model"), "--reward outcome_model needs --reward_model DIR, .*"),
        (
            LINE,
            dict(reward_model="{}/none"),
            "--reward_model and --reward_questions need --reward .*",
        ),
        (LINE, dict(reward="process_model", reward_model="{}/none"), "{}/none.*"),
        (
            LINE,
            dict(
                reward="process_model", reward_model="{}/none", supervision="process", scale="none"
            ),
            "--scale none: process supervision .*",
        ),
        (
            LINE,
            dict(reward="process_model", reward_model="{}/none", reward_questions=2, iterations=1),
            "--reward_questions needs --iterations above 1: .*",
        ),
        (
            LINE,
            dict(supervision="process"),
            "--supervision process needs --reward process_model, not rule",
        ),
        (
            LINE,
            dict(algorithm="rft", reward="outcome_model", reward_model="{}/none"),
            "--algorithm rft needs --reward rule, not outcome_model",
        ),
        (
            LINE,
            dict(
                reward="process_model",
                reward_model="{}/none",
                reward_questions=2,
                reward_config="{}/none.toml",
            ),
            "{}/none.toml: cannot be read .*",
        ),
        (LINE, dict(formats="cot,tool"), "--formats cot,tool: unknown; choose cot or pot"),
        (LINE, dict(formats=""), "--formats .*"),
        (
            LINE,
            dict(template="fancy"),
            "--template fancy: unknown; choose plain, deepseek, qwen or chat",
        ),
        (LINE, dict(temperature=0), "--temperature 0: out of range; give a finite number above 0"),
        (LINE, dict(mu=0), "--mu 0: out of range; give an integer at least 1"),
        (LINE, dict(valid_every=0), "--valid_every 0: out of range; give an integer at least 1"),
        (LINE, dict(save_every=0), "--save_every 0: out of range; give an integer at least 1"),
        (LINE, dict(max_rows=0), "--max_rows 0: out of range; give an integer at least 1"),
        (LINE, dict(micro_tokens=0), "--micro_tokens 0: out of range; give an integer at least 1"),
        (LINE, dict(sampels=3), "--sampels: unknown option; did you mean --samples[?]"),
        (
            LINE,
            dict(activation_checkpointing=1),
            "--activation_checkpointing 1: needs true or false",
        ),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, text, changes, message):
    if text is not None:
        (tmp_path / "bad.jsonl").write_text(text)
    if "mixed" in message:  # a checkpoint with the tokenizer of another
        save_pretrained(from_pretrained(tiny.root / "base"), tmp_path / "mixed")
        train([chr(i) * 9 for i in range(300, 900)], 500, workers=1).save(tmp_path / "mixed")
    changes = {"problems": "{}/bad.jsonl", **changes}
    changes = {name: str(value).replace("{}", str(tmp_path)) for name, value in changes.items()}
    said = refusal(
        "grpo", options("grpo", tiny.root, tmp_path / "run", **changes), monkeypatch, capsys
    )
    assert re.fullmatch(message.replace("{}", re.escape(str(tmp_path))), said), said
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_too_long_in_one_format_only(tiny, tmp_path, monkeypatch, capsys):
    """ "Program:" takes more tokens than "Answer:"; found before the first step, not when its turn comes."""
    question, count = "Ann?", {}
    while count.get("cot", 0) < 95:
        question += " a"
        count = {f: len(tiny.tokenizer.encode(prompts.prompt(question, f))) for f in ("cot", "pot")}
    assert count["cot"] < 96 <= count["pot"]
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"id": "long", "question": question, "answer": "1"}) + "\n"
    )
    changes = dict(problems=tmp_path / "long.jsonl", questions=1, valid="")
    said = refusal(
        "grpo", options("grpo", tiny.root, tmp_path / "run", **changes), monkeypatch, capsys
    )
    assert said == "problem long: the prompt is as long as the model's context, 96; leave it out"
    assert not (tmp_path / "run").exists()


def test_the_program_says_it_in_one_line_too(tiny, tmp_path):
    (tmp_path / "bad.jsonl").write_text(LINE + LINE.replace('"1"', '""'))
    arguments = options("grpo", tiny.root, tmp_path / "run", problems=tmp_path / "bad.jsonl")
    finished = start(arguments, program=train_grpo.__file__)
    said = one_error(finished.returncode, finished.stderr)
    assert said.startswith(f"{tmp_path}/bad.jsonl:2: a problem without 'answer'")


def test_another_policy_needs_another_directory(tiny, tmp_path, monkeypatch, capsys):
    """Rollouts of one set of options are not taken for those of another, even without a checkpoint."""
    run("grpo", tiny.root, tmp_path / "run", iterations=1, steps=1, valid="")
    for path in (tmp_path / "run").glob("step_*"):
        path.rename(tmp_path / path.name)
    changes = dict(iterations=1, steps=1, valid="", temperature=0.5)
    said = refusal(
        "grpo", options("grpo", tiny.root, tmp_path / "run", **changes), monkeypatch, capsys
    )
    assert (
        said
        == f"{tmp_path}/run/config.toml: temperature was 0.9, now 0.5; give the same value, or another --to"
    )
