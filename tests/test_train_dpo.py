"""DPO: pairs, equation 12 and its gradient, learning, resuming, two processes, bad input."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from training import (
    PROBLEMS,
    QUESTIONS,
    assert_close,
    assert_same_run,
    assert_same_start,
    gradients,
    logprobs,
    metrics,
    one_error,
    options,
    refusal,
    run,
    start,
)

import train_dpo
import train_sft
from data import prompts
from data.chat import load_tokenizer
from data.io import InputError, read_jsonl, write_jsonl
from data.problems.problem import Problem
from data.train_tokenizer import train
from generate import Sample
from rollout import Rollout, load_rollouts
from runtime.distributed import World, shuffled
from runtime.hf import from_pretrained, save_pretrained
from train_dpo import (
    Config,
    Pair,
    batch_loss,
    dpo_loss,
    implicit_rewards,
    load_pairs,
)

POINTS = [
    ["runtime.run.Run.log", 3, "before"],  # before the first checkpoint
    [
        "train_dpo.clip_grad_norm",
        7,
        "before",
    ],  # between two; the gradient of step 7 is not used yet
    ["pathlib.Path.rename", 1, "before"],  # a checkpoint is written but does not have its name yet
    ["runtime.checkpoint.Checkpoints.write", 2, "after"],  # the last is written
]


@pytest.fixture(scope="module")
def runs(killed):
    return killed("dpo", POINTS)


@pytest.fixture(scope="module")
def samples(tiny):
    return load_rollouts(tiny.root / "samples.jsonl")


@pytest.fixture(scope="module")
def all_pairs(tiny):
    return load_pairs([f"{tiny.root}/samples.jsonl"], Config(context=96), tiny.tokenizer)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def group(completions, rewards, id="p", prompt=(5, 6, 7)) -> Rollout:
    found = [Sample(list(ids), [-1.0] * len(ids), [True] * len(ids), "eos") for ids in completions]
    return Rollout(Problem(id, "q", "1"), "cot", list(prompt), found, list(rewards), rewards)


def ids_of(found: list[Pair]) -> list[tuple]:
    return [(tuple(pair.right.ids), tuple(pair.wrong.ids)) for pair in found]


def test_pairs_by_hand():
    one = group([[1], [2, 2], [3], [4, 4, 4], [2, 2], [8]], [0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    one.samples[5].mask = [False]  # a tool's answer, not the policy's
    found, left_out = train_dpo.draw_pairs(one, 9, 100, seed=0)
    assert left_out == 0 and all(pair.prompt == [5, 6, 7] for pair in found)
    assert sorted(ids_of(found)) == [
        ((2, 2), (1,)),
        ((2, 2), (4, 4, 4)),
        ((3,), (1,)),
        ((3,), (4, 4, 4)),
    ]
    found, left_out = train_dpo.draw_pairs(one, 9, 5, seed=0)  # of context 5 the prompt leaves 2
    assert left_out == 2 and sorted(ids_of(found)) == [((2, 2), (1,)), ((3,), (1,))]
    assert train_dpo.draw_pairs(one, 9, 3, seed=0) == ([], 4)
    for alike in (0.0, 1.0):
        assert train_dpo.draw_pairs(group([[1], [2]], [alike, alike]), 9, 100, seed=0) == ([], 0)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 9),
)
def test_pairs_are_right_and_wrong_and_not_repeated(drawn, count):
    said = {
        n: right for n, right in drawn
    }  # a text is right or wrong, however often it was sampled
    one = group([[n] for n, _ in drawn], [float(said[n]) for n, _ in drawn])
    found = ids_of(train_dpo.draw_pairs(one, count, 100, seed=0)[0])
    rights = sum(said.values())
    assert len(set(found)) == len(found) == min(count, rights * (len(said) - rights))
    assert all(said[right[0]] and not said[wrong[0]] for right, wrong in found)


def test_pairs_hang_on_seed_and_problem_alone():
    def drawn(id, seed):
        one = group([[n] for n in range(20)], [float(n % 2) for n in range(20)], id)
        return ids_of(train_dpo.draw_pairs(one, 5, 100, seed)[0])

    assert drawn("a", 0) == drawn("a", 0)
    assert drawn("a", 0) != drawn("b", 0) and drawn("a", 0) != drawn("a", 1)


def test_the_rule_decides_not_a_reward_model():
    one = group([[1], [2]], [0.9, 0.3])
    one.verdicts = [0.0, 1.0]
    assert ids_of(train_dpo.draw_pairs(one, 1, 100, 0)[0]) == [((2,), (1,))]


def test_pairs_of_a_file_are_as_sampled(tiny, samples):
    config = Config(pairs=2, context=40)
    found, counts = load_pairs([f"{tiny.root}/samples.jsonl"], config, tiny.tokenizer)
    own = [train_dpo.draw_pairs(one, 2, 40, 0) for one in samples]
    assert ids_of(found) == [pair for part, _ in own for pair in ids_of(part)]
    assert counts == {
        "pairs": len(found),
        "questions": sum(part != [] for part, _ in own),
        "left_out": sum(left_out for _, left_out in own),
    }
    assert counts["left_out"] > 0 and counts["questions"] < counts["pairs"]  # the test saw both
    assert {tuple(pair.prompt) for pair in found} <= {tuple(one.prompt) for one in samples}


# ---------------------------------------------------------------------------------------------------------------------
# Equation 12, on log-probs in float64


def made_up(length_normalize: bool, beta: float = 1.7):
    """Two pairs: log-probs that share their parameters [5, V], the reference's, weights and lengths."""
    draw = torch.Generator().manual_seed(0)
    lengths = [3, 5, 1, 4]
    n = sum(lengths)
    inputs, targets = (
        torch.randn(n, 5, generator=draw).double(),
        torch.randint(0, 6, (n,), generator=draw),
    )
    theta = torch.randn(5, 6, generator=draw).double().requires_grad_()
    ref_logp = torch.randn(n, generator=draw).double() - 2
    sizes = torch.tensor(lengths).repeat_interleave(torch.tensor(lengths)).double()
    weight = beta / sizes if length_normalize else torch.full_like(sizes, beta)

    def policy(theta):
        return (inputs @ theta).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    return policy, theta, ref_logp, weight, lengths


def dpo_coefficient(rewards, weight, lengths, count):
    """Minus d loss / d logp of eq. 12 by formula, [N]: weight * sigmoid(r(o-) - r(o+)) / count, with its sign."""
    right, wrong = rewards.view(-1, 2).unbind(1)
    doubt = torch.sigmoid(wrong - right) / count
    each = torch.stack([doubt, -doubt], dim=1).flatten()
    return weight * each.repeat_interleave(torch.tensor(lengths))


@pytest.mark.parametrize("length_normalize", [True, False])
def test_gradient_is_coefficient_times_grad_log_pi(length_normalize):
    policy, theta, ref_logp, weight, lengths = made_up(length_normalize)
    logp = policy(theta)
    rewards = implicit_rewards(logp, ref_logp, weight, lengths)
    (found,) = torch.autograd.grad(dpo_loss(rewards, 2), theta, retain_graph=True)
    coefficient = dpo_coefficient(rewards.detach(), weight, lengths, 2)
    by_token = [torch.autograd.grad(one, theta, retain_graph=True)[0] for one in logp]
    expected = sum(c * grad for c, grad in zip(coefficient, by_token, strict=True))
    torch.testing.assert_close(-found, expected, rtol=1e-12, atol=1e-14)
    assert (coefficient[:3] > 0).all() and (coefficient[3:8] < 0).all()

    def loss(theta):
        return dpo_loss(implicit_rewards(policy(theta), ref_logp, weight, lengths), 2)

    assert torch.autograd.gradcheck(loss, theta)  # finite differences


def test_sums_are_ordinary_dpo():
    """As TRL writes it: -logsigmoid(beta * ((pi_chosen - pi_rejected) - (ref_chosen - ref_rejected))), of sums."""
    policy, theta, ref_logp, weight, lengths = made_up(False, beta=0.3)
    logp = policy(theta)
    (pi_0, pi_1, pi_2, pi_3), (ref_0, ref_1, ref_2, ref_3) = (
        [part.sum() for part in values.split(lengths)] for values in (logp, ref_logp)
    )
    logits = torch.stack([(pi_0 - pi_1) - (ref_0 - ref_1), (pi_2 - pi_3) - (ref_2 - ref_3)])
    expected = -F.logsigmoid(0.3 * logits).mean()
    found = dpo_loss(implicit_rewards(logp, ref_logp, weight, lengths), 2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    one, two = (
        torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in (found, expected)
    )
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "weight, margin, loss, coefficient",
    [
        # log-ratios of the right one 0.3 and 0.1, of the wrong one -0.4; beta 2
        (
            [1, 1, 2],
            2 * (0.2 + 0.4),
            0.263282,
            [0.231475, 0.231475, -0.462950],
        ),  # means: sigmoid(-1.2) = 0.231475
        (
            [2, 2, 2],
            2 * (0.4 + 0.4),
            0.183901,
            [0.335964, 0.335964, -0.335964],
        ),  # sums: sigmoid(-1.6) = 0.167982
    ],
)
def test_by_hand(weight, margin, loss, coefficient):
    logp, ref_logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.3, -2.1, -2.6]]).double()
    weight = torch.tensor(weight).double()
    rewards = implicit_rewards(logp, ref_logp, weight, [2, 1])
    assert (rewards[0] - rewards[1]).item() == pytest.approx(margin)
    assert dpo_loss(rewards, 1).item() == pytest.approx(loss, abs=1e-6)
    assert dpo_coefficient(rewards, weight, [2, 1], 1).tolist() == pytest.approx(
        coefficient, abs=1e-6
    )
    # half of a batch of two pairs
    assert dpo_loss(rewards, 2).item() == pytest.approx(loss / 2, abs=1e-6)
    assert dpo_coefficient(rewards, weight, [2, 1], 2)[2].item() == pytest.approx(
        coefficient[2] / 2, abs=1e-6
    )


def test_extreme_margins_stay_finite():
    rewards = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = dpo_loss(rewards, 1)
    loss.backward()
    assert loss.item() == 1000 and rewards.grad.tolist() == [-1, 1]


# ---------------------------------------------------------------------------------------------------------------------
# The model's loss and its gradient


def naive(model, reference, chosen: list[Pair], config: Config) -> dict:
    """The definition, a completion at a time in float64: every metric, and the loss with its gradient."""
    rows = []
    for pair in chosen:
        rewards, means = [], []
        for sample in (pair.right, pair.wrong):
            own = torch.tensor(sample.mask)
            logp, ref = (
                logprobs(m, pair.prompt, sample.ids)[own].double() for m in (model, reference)
            )
            ratio = logp - ref.detach()
            rewards.append(config.beta * (ratio.mean() if config.length_normalize else ratio.sum()))
            means.append(logp.mean())
        margin = rewards[0] - rewards[1]
        rows.append(
            torch.stack(
                [(1 + (-margin).exp()).log(), (margin > 0).double(), margin, *rewards, *means]
            )
        )
    return dict(zip(train_dpo.METRICS, torch.stack(rows).mean(0), strict=True))


@pytest.mark.parametrize("length_normalize, beta", [(True, 2.0), (False, 0.3)])
@pytest.mark.parametrize("micro_tokens", [1000, 60])
def test_gradient_of_the_model(tiny, all_pairs, length_normalize, beta, micro_tokens):
    """With tool tokens masked, and micro-batches of one pair or of all."""
    model, reference = from_pretrained(tiny.root / "base"), from_pretrained(tiny.root / "model")
    chosen = [
        Pair(
            pair.prompt,
            *(Sample(s.ids, s.logprobs, [t != 2 for t in range(len(s.ids))], "eos") for s in own),
        )
        for pair in all_pairs[:5]
        for own in [(pair.right, pair.wrong)]
    ]
    config = Config(length_normalize=length_normalize, beta=beta, micro_tokens=micro_tokens)
    expected = naive(model, reference, chosen, config)
    expected["loss"].backward()
    wanted = gradients(model)
    found = batch_loss(model, reference, chosen, config, World())
    assert found == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )
    assert 0.01 < found["loss"] and 0 < found["accuracy"] < 1  # the test saw something
    assert_close(gradients(model), wanted)
    assert all(p.grad is None for p in reference.parameters())
    with torch.no_grad():
        assert batch_loss(model, reference, chosen, config, World()) == found
    assert all(p.grad is None for p in model.parameters())


def test_gradients_do_not_depend_on_micro_batches_or_processes(alone, together):
    assert_close(alone[4]["dpo"], alone[1]["dpo"])
    assert_close(torch.load(together / "gradients.pt")["dpo"], alone[1]["dpo"])


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


def test_a_killed_run_is_the_same_run(runs):
    out, log = runs
    assert_same_run(out / "whole", out / "killed")
    second, last = ["step_000004"], ["step_000004", "step_000008", "step_000010"]
    assert [part["checkpoints"] for part in log[:-1]] == [[], second, second, last]


def test_the_run_itself(runs, tiny, all_pairs):
    out, _ = runs
    rows = metrics(out / "whole")
    factors = [0.5, 1, 1, 1, 1, 1, 1, 0.7, 0.4, 0.1]
    assert [row["lr"] for row in rows] == pytest.approx([3e-4 * factor for factor in factors])
    # the policy starts as the reference
    assert (
        rows[0]["loss"] == pytest.approx(math.log(2))
        and rows[0]["margin"] == 0
        and rows[0]["grad_norm"] > 0
    )
    order, reference = shuffled(len(all_pairs), 0), from_pretrained(tiny.root / "model")
    chosen = [all_pairs[next(order)] for _ in range(5)]
    with torch.no_grad():
        first = naive(reference, reference, chosen, Config())
        assert rows[0]["logp_right"] == pytest.approx(first["logp_right"].item(), rel=1e-5)
        # the reference stays what it was, and the policy has learned to tell right from wrong
        last = naive(from_pretrained(out / "whole" / "model"), reference, all_pairs, Config())
    assert [row["step"] for row in rows if "valid_loss" in row] == [3, 6, 9, 10]
    for name in ("loss", "accuracy", "margin"):
        assert rows[-1][f"valid_{name}"] == pytest.approx(last[name].item(), rel=1e-3)
    assert (
        rows[-1]["valid_loss"] < rows[2]["valid_loss"] < math.log(2)
        and rows[-1]["valid_margin"] > 0.2
    )
    summary = json.loads((out / "whole" / "summary.json").read_text())
    counts = load_pairs([f"{tiny.root}/samples.jsonl"], Config(context=96), tiny.tokenizer)[1]
    assert {name: summary[name] for name in counts} == counts


def test_dpo_makes_right_answers_likelier(tiny, all_pairs, tmp_path):
    """Ordinary DPO too: the policy comes to prefer what it was right with, though it was taught all answers alike."""
    changes = dict(
        length_normalize="false",
        beta=0.1,
        batch=len(all_pairs),
        steps=40,
        lr=2e-3,
        micro_tokens=1000,
    )
    run("dpo", tiny.root, tmp_path, **changes, valid_every=40, save_every=40)
    model = from_pretrained(tmp_path / "model")
    with torch.no_grad():
        gaps = [
            [
                logprobs(m, pair.prompt, sample.ids).sum().item()
                for sample in (pair.right, pair.wrong)
            ]
            for m in (from_pretrained(tiny.root / "model"), model)
            for pair in all_pairs
        ]
    right, wrong = np.array(gaps).reshape(2, len(all_pairs), 2).transpose(2, 0, 1)
    assert ((right - wrong)[1] > (right - wrong)[0]).all()
    assert metrics(tmp_path)[-1]["valid_accuracy"] == 1


def test_two_processes_train_the_same_model(runs, together):
    assert_same_start(metrics(together / "dpo"), metrics(runs[0] / "whole"))


# ---------------------------------------------------------------------------------------------------------------------
# Published pairs


def pairs_of(tiny, path, *rows, **changes):
    write_jsonl(path, rows)
    return load_pairs([str(path)], Config(**{"context": 400} | changes), tiny.tokenizer)


def test_a_published_pair_is_a_question_with_two_answers(tiny, tmp_path):
    """The ids are those of an SFT example with the same question, for each answer."""
    row = {"prompt": "How many?", "chosen": "It is 3.", "rejected": "It is four."}
    (pair,), counts = pairs_of(tiny, tmp_path / "f.jsonl", row)
    assert counts == {"pairs": 1, "questions": 1, "left_out": 0}
    for answer, sample in (("It is 3.", pair.right), ("It is four.", pair.wrong)):
        write_jsonl(tmp_path / "sft.jsonl", [{"question": "How many?", "response": answer}])
        (example,), _ = train_sft.load_examples(
            [f"{tmp_path}/sft.jsonl"], tiny.tokenizer, "plain", 99
        )
        assert (pair.prompt, sample.ids) == ids_of_example(example)
        assert all(sample.mask)
    assert pairs_of(tiny, tmp_path / "f.jsonl", row, row)[1]["pairs"] == 2
    longest = len(pair.prompt) + max(len(pair.right.ids), len(pair.wrong.ids))
    short = {"prompt": "How?", "chosen": "3", "rejected": "4"}
    found, counts = pairs_of(tiny, tmp_path / "f.jsonl", row, short, context=longest - 1)
    assert len(found) == counts["left_out"] == 1


def ids_of_example(example):
    return example.prompt, example.response


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_chats_in_the_template_of_the_model(tmp_path):
    """Turns, a system message and a chat with a common beginning, as the template writes them."""
    pytest.importorskip("jinja2")
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    train(["abcdefgh how many"] * 9, 300, markers, workers=1).save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    tokenizer = load_tokenizer(tmp_path, "chat")
    turns = [("system", "S"), ("user", "How?"), ("assistant", "So."), ("user", "And?")]
    chat = [{"role": role, "content": content} for role, content in turns]
    answers = [[*chat, {"role": "assistant", "content": text}] for text in ("Yes.", "No.")]
    write_jsonl(tmp_path / "f.jsonl", [{"chosen": answers[0], "rejected": answers[1]}])
    config = Config(template="chat", context=400)
    (pair,), _ = load_pairs([f"{tmp_path}/f.jsonl"], config, tokenizer)
    assert pair.prompt == tokenizer.chat.encode(chat, add_generation_prompt=True)
    end = tokenizer.special["<|im_end|>"]
    for text, sample in (("Yes.", pair.right), ("No.", pair.wrong)):
        assert sample.ids == [*tokenizer.encode(text), end] and all(sample.mask)
    with pytest.raises(InputError, match="f.jsonl:1: its messages are system, .* --template chat"):
        load_pairs([f"{tmp_path}/f.jsonl"], Config(), tokenizer)
    # A question gets the instruction of the format.
    write_jsonl(tmp_path / "f.jsonl", [{"prompt": "How?", "chosen": "Yes.", "rejected": "No."}])
    (pair,), _ = load_pairs([f"{tmp_path}/f.jsonl"], config, tokenizer)
    question = prompts.prompt("How?", "cot", "chat")
    assert pair.prompt == prompts.encode(tokenizer, [question], "chat")[0]


def test_steps_are_compared_after_their_common_beginning(tiny, tmp_path):
    """Step-DPO: what comes before the two steps is in the context, not in the loss."""
    row = {"prompt": "How many?", "initial_reason_steps": "1 + 2 = 3.\nSo", "answer": "4"}
    row |= {"chosen": " 3 + 1 = 4.", "rejected": " we stop here."}
    (pair,), _ = pairs_of(tiny, tmp_path / "f.jsonl", row)
    for sample, step in ((pair.right, row["chosen"]), (pair.wrong, row["rejected"])):
        assert tiny.tokenizer.decode(sample.ids) == " " + row["initial_reason_steps"] + step
        count = sample.mask.count(False)
        assert sample.mask == [False] * count + [True] * (len(sample.ids) - count)
        assert step.endswith(tiny.tokenizer.decode(sample.ids[count:]))
        assert sample.ids[-1] != tiny.tokenizer.eos_id
    common = pair.right.mask.count(False)
    assert pair.right.ids[:common] == pair.wrong.ids[:common]
    assert pair.right.ids[common] != pair.wrong.ids[common]


def test_dpo_learns_published_pairs(tiny, tmp_path):
    rows = [
        {"prompt": question, "chosen": [{"role": "assistant", "content": "It is one."}]}
        | {"rejected": [{"role": "assistant", "content": "Two."}]}
        for question in QUESTIONS
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    data = tmp_path / "pairs.jsonl"
    run("dpo", tiny.root, tmp_path / "run", data=data, valid=data, steps=12, lr=3e-3)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["accuracy"] == 1 and rows[-1]["margin"] > rows[0]["margin"] + 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Bad input

NOT_A_ROLLOUT = '{"id": "a", "question": "Ann?", "answer": "1"}\n'


def alike(rows):
    return [{**row, "verdicts": [1.0] * len(row["responses"])} for row in rows]


def of_another(rows):
    rows[1]["responses"][2]["ids"][0] += 1
    return rows


@pytest.mark.parametrize(
    "text, changes, message",
    [
        (None, {}, "{}/bad.jsonl: cannot be read .*"),
        (
            "",
            {},
            "{}/bad.jsonl: no question has a right and a wrong completion of at most 96 tokens .*; sample .*",
        ),
        ("{\n", {}, "{}/bad.jsonl:1: not valid JSON .*"),
        (
            NOT_A_ROLLOUT,
            {},
            "{}/bad.jsonl:1: no chosen and rejected among id, question, answer; data are .*",
        ),
        (
            alike,
            {},
            "{}/bad.jsonl: no question has a right and a wrong completion .*; sample more of each, .*",
        ),
        (
            of_another,
            {},
            "{}/bad.jsonl:2: its ids are not its text in the vocabulary of .*; sample with a model .*",
        ),
        (
            list,
            dict(context=20),
            "{}/bad.jsonl: no question has .* of at most 20 tokens .*; raise --context",
        ),
        (list, dict(valid="{}/none.jsonl"), "{}/none.jsonl: cannot be read .*"),
        (list, dict(init="{}/none"), "{}/none.*"),
        (
            list,
            dict(init="{}/mixed"),
            "{}/mixed: the tokenizer has 500 ids, the embedding only 400 rows; .*",
        ),
        (list, dict(init=""), "--init is needed: .*"),
        (list, dict(data=""), "--data is needed: .*"),
        (list, dict(to=""), "--to is needed: .*"),
        (list, dict(beta=0), "--beta 0: out of range; give a finite number above 0"),
        (list, dict(beta="nan"), "--beta nan: out of range; give a finite number above 0"),
        (list, dict(pairs=0), "--pairs 0: out of range; give an integer at least 1"),
        (list, dict(context=-1), "--context -1: out of range; give an integer at least 0"),
        (list, dict(batch=0), "--batch 0: out of range; give an integer at least 1"),
        (list, dict(steps=0), "--steps 0: out of range; give an integer at least 1"),
        (list, dict(micro_tokens=0), "--micro_tokens 0: out of range; give an integer at least 1"),
        (list, dict(valid_every=0), "--valid_every 0: out of range; give an integer at least 1"),
        (list, dict(save_every=0), "--save_every 0: out of range; give an integer at least 1"),
        (list, dict(length_normalize=1), "--length_normalize 1: needs true or false"),
        (list, dict(bata=1), "--bata: unknown option; .*"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, text, changes, message):
    """text: the file; or a function that makes it from the lines of a good one."""
    if callable(text):
        write_jsonl(
            tmp_path / "bad.jsonl",
            text([row for _, row in read_jsonl(tiny.root / "samples.jsonl")]),
        )
    elif text is not None:
        (tmp_path / "bad.jsonl").write_text(text)
    if "mixed" in message:  # a checkpoint with the tokenizer of another
        save_pretrained(from_pretrained(tiny.root / "base"), tmp_path / "mixed")
        train([chr(i) * 9 for i in range(300, 900)], 500, workers=1).save(tmp_path / "mixed")
    changes = {"data": "{}/bad.jsonl", **changes}
    changes = {name: str(value).replace("{}", str(tmp_path)) for name, value in changes.items()}
    said = refusal(
        "dpo", options("dpo", tiny.root, tmp_path / "run", **changes), monkeypatch, capsys
    )
    assert re.fullmatch(message.replace("{}", re.escape(str(tmp_path))), said), said
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_found_out(tiny):
    """The whole vocabulary is another one, not a single id."""
    other = train([problem.question + " answer 12" for problem in PROBLEMS] * 3, 300, workers=1)
    with pytest.raises(
        InputError,
        match="samples.jsonl:1: its ids are not its text in the vocabulary of the model; sample",
    ):
        load_pairs([f"{tiny.root}/samples.jsonl"], Config(init="DIR", context=96), other)


def test_the_program_says_it_in_one_line_too(tiny, tmp_path):
    (tmp_path / "bad.jsonl").write_text(NOT_A_ROLLOUT)
    arguments = options("dpo", tiny.root, tmp_path / "run", data=tmp_path / "bad.jsonl")
    finished = start(arguments, program=train_dpo.__file__)
    assert one_error(finished.returncode, finished.stderr).startswith(
        f"{tmp_path}/bad.jsonl:1: no chosen and rejected among id, question, answer; data are files"
    )
