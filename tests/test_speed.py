"""What timing.jsonl says of a trainer's speed: tokens and FLOPs of a step, counted here token by token."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import TRAINERS, made_up_rollouts, micro_batches, run, scoring

import train_dpo
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from batch import pack_completions
from data.tokenizer import Tokenizer
from kernels import flex_attention
from model import ModelConfig
from rollout import load_rollouts
from runtime import optim
from runtime.distributed import World, shuffled
from runtime.hf import from_pretrained, read_config
from runtime.optim import adamw, forward_flops, model_flops, peak_flops

SHAPE = ModelConfig(50, width=8, layers=3, heads=4, kv_heads=1, ffn=10, head_width=2)
TOKEN, PREDICTED, PAIR = (
    3 * 2 * (8 * 2 * 10 + 3 * 8 * 10),
    2 * 8 * 50,
    3 * 4 * 4 * 2,
)  # by hand, of a forward


def test_the_example_by_hand():
    groups = [([5, 6, 7], [[8, 9], [4, 3, 2]])]
    assert (
        forward_flops(SHAPE, groups)
        == model_flops(SHAPE, 6, 5, 19)
        == 6 * TOKEN + 5 * PREDICTED + 19 * PAIR
    )
    assert forward_flops(SHAPE, groups, last=True) == model_flops(SHAPE, 8, 5, 19 + 5 + 6)
    assert model_flops(SHAPE, 1, 1, 0) == TOKEN + PREDICTED
    scorer = ModelConfig(
        50, width=8, layers=3, heads=4, kv_heads=1, ffn=10, head_width=2, score="value"
    )
    assert forward_flops(scorer, groups) == 6 * TOKEN + 19 * PAIR


IDS = st.lists(st.integers(0, 9), min_size=1, max_size=7)


@given(st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=4))
def test_tokens_and_pairs_are_those_of_the_packed_batch(groups):
    batch = pack_completions(groups)
    places = torch.arange(batch.layout.tokens)
    seen = int(flex_attention.visible(batch.layout)(0, 0, places[:, None], places[None]).sum())
    assert forward_flops(SHAPE, groups) == model_flops(
        SHAPE, len(batch.ids), len(batch.targets), seen
    )


def test_windows_of_documents():
    rows = np.array(
        [[5, 0, 7, 8, 1], [3, 3, 3, 0, 9]]
    )  # documents of 2 and 2, then 4 tokens; EOS is 0
    by_hand = 8 * TOKEN + 6 * PREDICTED + (3 + 3 + 10) * PAIR
    assert train_pretrain.step_flops(SHAPE, rows, 0) == 3 * by_hand


def spied(monkeypatch) -> list:
    """The arguments of each call of optim.speed."""
    calls, speed = [], optim.speed
    monkeypatch.setattr(optim, "speed", lambda *args: calls.append(args) or speed(*args))
    return calls


def last_timing(directory) -> dict:
    return json.loads((directory / "timing.jsonl").read_text().splitlines()[-1])


def sequences(*pairs) -> float:
    """FLOPs of a forward of (prompt, completion) pairs of the tiny world's model, the last tokens read too."""
    shape = ModelConfig(400, width=32, layers=2, heads=4, kv_heads=2, ffn=64)
    return sum(
        model_flops(shape, n, 0, n * (n + 1) // 2)
        for n in (len(prompt) + len(ids) for prompt, ids in pairs)
    )


@pytest.mark.parametrize("trainer", ["pretrain", "sft", "reward", "dpo"])
def test_a_step_learns_from_so_many_tokens(trainer, tiny, tmp_path, monkeypatch):
    """On one batch that holds all there is, with micro-batches as small as they get."""
    calls, root = spied(monkeypatch), tiny.root
    shape, tokenizer = read_config(root / "base"), Tokenizer.load(root / "base")
    module = TRAINERS[trainer]
    whole = dict(steps=1, batch=10**4, micro_tokens=60, decay=0)
    if trainer == "pretrain":
        run(trainer, root, tmp_path / "run", steps=1, batch=6, micro_batch=1)
        (tokens, flops, _, _) = calls[0]
        most = 3 * model_flops(shape, tokens, tokens, tokens * (32 + 1) / 2)
        assert tokens == 6 * 32 and 0.7 * most < flops < most  # documents are shorter than windows
    elif trainer == "sft":
        examples = train_sft.load_examples([f"{root}/sft.jsonl"], tokenizer, "plain", 72)[0]
        run(trainer, root, tmp_path / "run", **{**whole, "batch": 1}, valid="")
        (tokens, flops, _, _) = calls[0]
        (chosen,) = [
            [
                examples[i]
                for i in next(train_sft.batches([*map(train_sft.length, examples)], 72, 1, 0))
            ]
        ]
        assert tokens == sum(map(train_sft.length, chosen))
        fed = [train_sft.length(example) - 1 for example in chosen]
        predicted = sum(len(example.response) for example in chosen)
        assert flops == 3 * model_flops(
            shape, sum(fed), predicted, sum(n * (n + 1) // 2 for n in fed)
        )
    elif trainer == "reward":
        run(
            trainer,
            root,
            tmp_path / "run",
            steps=1,
            questions=6,
            micro_tokens=40,
            history="",
            valid="",
        )
        (tokens, flops, _, _) = calls[0]
        config = module.Config(kind="process", init=str(root / "base"), context=64)
        groups = train_reward.load_labeled(f"{root}/samples.jsonl", config, tokenizer)[0]
        assert len(groups) == 6
        assert tokens == sum(len(one.prompt) + sum(map(len, one.completions)) for one in groups)
        alone = sequences(*((one.prompt, ids) for one in groups for ids in one.completions))
        again = sequences(*((one.prompt, []) for one in groups for _ in one.completions[1:]))
        assert flops == pytest.approx(3 * (alone - again))
    else:
        run(trainer, root, tmp_path / "run", **{**whole, "batch": 3}, pairs=1, valid="")
        (tokens, flops, _, _) = calls[0]
        config = module.Config(init=str(root / "model"), pairs=1, context=96)
        found = train_dpo.load_pairs([f"{root}/samples.jsonl"], config, tokenizer)[0]
        order = shuffled(len(found), 0)
        chosen = [found[next(order)] for _ in range(3)]
        both = [(pair.prompt, sample.ids) for pair in chosen for sample in (pair.right, pair.wrong)]
        assert tokens == sum(pair.tokens for pair in chosen)
        read = sequences(*((prompt, ids[:-1]) for prompt, ids in both)) - sequences(
            *((p.prompt, []) for p in chosen)
        )
        head = model_flops(shape, 0, sum(len(ids) for _, ids in both), 0)
        assert flops == pytest.approx(4 * (read + head))
    found = last_timing(tmp_path / "run")
    assert 0 < found["mfu"] < 1.5 and found["tokens_per_second"] >= tokens / found["seconds"]


@pytest.mark.parametrize("trainer, models", [("grpo", 1), ("ppo", 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_reinforcement(trainer, models, processes, tiny, tmp_path, monkeypatch, request):
    if processes == 2:
        directory = (
            request.getfixturevalue("together") / trainer
        )  # written by processes that saw half of it each
    else:
        once = {"iterations": 1} if trainer == "grpo" else {}
        directory = run(trainer, tiny.root, tmp_path / "run", steps=1, valid="", **once)
    timing = last_timing(directory)
    rollouts = load_rollouts(directory / "rollouts" / f"step_{timing['step']:06d}.jsonl")
    groups = [(one.prompt, [sample.ids for sample in one.samples]) for one in rollouts]
    samples = [sample for one in rollouts for sample in one.samples]
    sampled = sum(len(sample.ids) for sample in samples)
    tokens = 2 * (sum(len(one.prompt) for one in rollouts) + sampled)  # mu is 2
    learning = timing["update"] + timing.get("assess", 0)
    assert timing["tokens_per_second"] * learning == pytest.approx(tokens)
    assert timing["rollout_tokens_per_second"] * timing["rollout"] == pytest.approx(sampled)
    shape = read_config(tiny.root / "model")
    forward, peak = (
        forward_flops(shape, groups),
        processes * peak_flops(torch.device("cpu")),
    )
    head = model_flops(shape, 0, sampled, 0)
    flops = (
        models * 7 * forward - (models - 1) * 7 * head
    )  # two forwards and backwards, and the reference or assess
    if processes == 1:  # the peak is measured by each process for itself
        assert timing["mfu"] * learning * peak == pytest.approx(flops)
        assert timing["mfu_step"] * timing["seconds"] * peak == pytest.approx(flops + forward)
    assert timing["mfu_step"] * timing["seconds"] / (timing["mfu"] * learning) == pytest.approx(
        1 + forward / flops
    )
    assert timing["seconds"] == pytest.approx(
        timing["rollout"] + timing["judge"] + timing["reward"] + learning
    )


def fed_tokens(run_step, *models) -> list[int]:
    """Tokens that went through each model's forward in `run_step()`."""
    counts = [0] * len(models)

    def count(number):
        def hook(model, args):
            counts[number] += args[0].numel()

        return hook

    handles = [model.register_forward_pre_hook(count(i)) for i, model in enumerate(models)]
    run_step()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("mu", [1, 3])
def test_a_question_is_read_once_and_the_reference_reads_once(mu, tiny):
    """By every model, in every method whose completions share a question, however many updates a batch serves."""
    root, world = tiny.root, World()
    policy, reference, value = (
        from_pretrained(root / "base"),
        from_pretrained(root / "model"),
        scoring(root / "model"),
    )
    rollouts = made_up_rollouts(tiny.tokenizer)
    once = sum(
        len(one.prompt) + sum(len(sample.ids) - 1 for sample in one.samples) for one in rollouts
    )
    steps = [adamw(model, 0.0) for model in (policy, value)]

    config = train_grpo.Config(mu=mu, max_new_tokens=16)

    def grpo() -> None:
        batches = micro_batches(rollouts, config, reference, world)
        train_grpo.update(policy, steps[0], batches, config, world)

    assert fed_tokens(grpo, policy, reference) == [mu * once, once]
    config = train_ppo.Config(mu=mu, max_new_tokens=16)

    def ppo() -> None:
        train_ppo.assess(config, rollouts, reference, value, world)
        train_ppo.estimate(config, rollouts)
        train_ppo.update(policy, steps[0], value, steps[1], rollouts, config, world)

    assert fed_tokens(ppo, policy, reference, value) == [mu * once, once, (mu + 1) * once]
    config = train_dpo.Config(init=str(root / "model"), context=96)
    pairs = train_dpo.load_pairs([f"{root}/samples.jsonl"], config, tiny.tokenizer)[0][:3]
    once = sum(pair.tokens - 2 for pair in pairs)
    found = fed_tokens(
        lambda: train_dpo.batch_loss(policy, reference, pairs, config, world), policy, reference
    )
    assert found == [once, once]
    config = train_reward.Config(kind="process", init=str(root / "base"), context=96)
    groups = train_reward.load_labeled(f"{root}/samples.jsonl", config, tiny.tokenizer)[0]
    once = sum(one.tokens for one in groups)
    assert fed_tokens(lambda: train_reward.batch_loss(value, groups, config, world), value) == [
        once
    ]


def test_a_step_that_was_sampled_before_says_nothing_of_sampling(tiny, tmp_path):
    directory = run("ppo", tiny.root, tmp_path / "run", steps=2, save_every=1, valid="")
    (directory / "step_000002").rename(tmp_path / "gone")
    run("ppo", tiny.root, directory, steps=2, save_every=1, valid="")
    timing = last_timing(directory)
    assert timing.keys() == {"step", "seconds", "update", "tokens_per_second", "mfu"}
    assert timing["seconds"] == timing["update"]
