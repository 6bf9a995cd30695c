"""--template chat in every command, with a tiny model: its prompts, what is learned, and who refuses it."""

import dataclasses
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from training import ROOT, TRAINERS, logprobs, options, parse, run

import eval as evaluation
import rollout
import train_reward
import train_sft
from data import prompts
from data.chat import load_tokenizer
from data.io import InputError, read_jsonl, write_jsonl
from evaluation import audit
from generate import Sample
from model import Transformer
from runtime.distributed import World
from runtime.hf import read_config, save_pretrained

TEMPLATE = """
{%- for m in messages %}<|start|>{{ m.role }}
{{ m.content }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% endif %}
"""
SYSTEM = "Be brief."


@pytest.fixture(scope="module")
def chat(tiny, tmp_path_factory):
    """A model with random weights and a chat template, whose end of an answer is not its EOS."""
    path = tmp_path_factory.mktemp("chat")
    tiny.tokenizer.save(path)
    document = json.loads((path / "tokenizer.json").read_text())
    size = tiny.tokenizer.vocab_size
    for id, text in enumerate(("<|start|>", "<|end|>"), size):
        document["added_tokens"].append({"id": id, "content": text, "special": True})
    (path / "tokenizer.json").write_text(json.dumps(document))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    shape = read_config(tiny.root / "base")
    shape = dataclasses.replace(shape, vocab_size=size + 2, context=400)
    save_pretrained(Transformer(shape, seed=1), path)
    return path


def prompt_ids(model, question, format="cot", system=SYSTEM):
    """The ids of the prompt, put together by hand."""
    tokenizer = load_tokenizer(model)
    start, end = tokenizer.special["<|start|>"], tokenizer.special["<|end|>"]
    text = prompts.prompt(question, format, "chat")
    assert text.startswith(question) and len(text) > len(question) + 20
    turns = [("system", system), ("user", text)]
    ids = []
    for role, content in turns[not system :]:
        ids += [start, *tokenizer.encode(f"{role}\n{content}"), end, *tokenizer.encode("\n")]
    return [*ids, start, *tokenizer.encode("assistant\n")]


def test_sft(tiny, chat, tmp_path):
    """A question gets its instruction, a chat is taken as it is, and the end of an answer is learned."""
    turns = [("user", "1?"), ("assistant", "It is 1."), ("user", "2?"), ("assistant", "print(2)")]
    rows = [
        {"question": "1?", "response": "print(1)", "format": "pot"},
        {"messages": [{"role": role, "content": text} for role, text in turns]},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    tokenizer = load_tokenizer(chat, "chat", SYSTEM)
    (first, second), _ = train_sft.load_examples([tmp_path / "rows.jsonl"], tokenizer, "chat", 400)
    assert first.prompt == prompt_ids(chat, "1?", "pot") and all(first.mask)
    assert tokenizer.decode(first.response) == "```python\nprint(1)\n```"
    assert first.response[-1] == tokenizer.eos_id == tokenizer.special["<|end|>"]
    text = tokenizer.decode([id for id, m in zip(second.response, second.mask, strict=True) if m])
    assert text == "It is 1.```python\nprint(2)\n```" and not all(second.mask)
    assert second.response.count(tokenizer.eos_id) == 3

    # The loss is the mean over what is learned.
    model = Transformer(read_config(chat), seed=1).double()
    tokens = sum(first.mask) + sum(second.mask)
    total = 0.0
    for one in (first, second):
        logp = logprobs(model, one.prompt, one.response)
        total += logp[torch.tensor(one.mask)].sum().item()
    loss = train_sft.batch_loss(model, [first, second], 10**4, World())
    assert loss == pytest.approx(-total / tokens, rel=1e-5)

    to = train(
        "sft",
        tmp_path / "run",
        chat,
        data=tmp_path / "rows.jsonl",
        valid="",
        context=400,
        steps=2,
        root=tiny.root,
    )
    ends = json.loads((to / "model/generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == {tiny.tokenizer.eos_id, tokenizer.eos_id}
    assert (to / "model/chat_template.jinja").read_text() == TEMPLATE


def train(trainer, to, model, root, **changes):
    settings = dict(template="chat", system=SYSTEM, micro_tokens=800)
    return run(trainer, root, to, init=model, **settings | changes)


@pytest.mark.parametrize("trainer", ["grpo", "ppo"])
def test_rollouts_of_training(tiny, chat, tmp_path, trainer):
    changes = dict(steps=1, valid="", questions=6, samples=2, mu=1, max_new_tokens=4)
    changes |= dict(iterations=1) if trainer == "grpo" else {}
    to = train(trainer, tmp_path, chat, tiny.root, **changes)
    rows = [row for _, row in read_jsonl(to / "rollouts/step_000001.jsonl")]
    assert {row["format"] for row in rows} == {"cot", "pot"}
    ends = json.loads((to / "model/generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == {tiny.tokenizer.eos_id, load_tokenizer(chat, "chat").eos_id}
    for row in rows:
        assert row["prompt"] == prompt_ids(chat, row["question"], row["format"])


def test_a_completion_ends_with_the_turn(tiny, chat, tmp_path):
    """The end of an answer is an end, beside the model's EOS; DPO and reward models learn from the file."""
    config = rollout.Config(model=str(chat), problems=[str(tiny.root / "problems.jsonl")])
    config.to, config.template, config.samples = str(tmp_path / "samples.jsonl"), "chat", 8
    config.max_new_tokens = 300
    rollout.main(config)
    rows = [row for _, row in read_jsonl(tmp_path / "samples.jsonl")]
    end = load_tokenizer(chat).special["<|end|>"]
    last = set()
    for row in rows:
        assert row["prompt"] == prompt_ids(chat, row["question"], system="")
        for one in row["responses"]:
            assert end not in one["ids"][:-1] and tiny.tokenizer.eos_id not in one["ids"][:-1]
            last |= {one["ids"][-1]} if one["finish"] == "eos" else set()
    assert last == {end, tiny.tokenizer.eos_id}


def test_reward_models(chat):
    tokenizer = load_tokenizer(chat, "chat", SYSTEM)
    solution = SimpleNamespace(question="1?", steps=[("It is 1.", 1.0)], verdict=1.0)
    settings = train_reward.Config(template="chat", system=SYSTEM)
    (labeled,) = train_reward._encode([solution], settings, tokenizer)
    assert labeled.prompt == prompt_ids(chat, "1?")
    assert labeled.completions == [[*tokenizer.encode("It is 1."), tokenizer.eos_id]]


def test_evaluation(tiny, chat, monkeypatch):
    seen = []

    def generate(model, tokenizer, prompts, sampling, **hooks):
        seen.extend(prompts)
        ids = [*tokenizer.encode("The answer is 1."), tokenizer.eos_id]
        return [[Sample(ids, [0.0] * len(ids), [True] * len(ids), "eos")] for _ in prompts]

    monkeypatch.setattr("evaluation.solve.generate", generate)
    config = evaluation.Config(str(chat), problems=[str(tiny.root / "problems.jsonl")])
    config.template, config.system = "chat", SYSTEM
    results = evaluation.main(config)
    questions = [row["question"] for _, row in read_jsonl(tiny.root / "problems.jsonl")]
    assert seen == [prompt_ids(chat, question) for question in questions]
    assert results["problems.cot"]["accuracy"] == pytest.approx(1 / 3)


def test_generate(chat):
    """A message, and a conversation whose lines come from a pipe."""

    def start(*arguments, lines=""):
        command = [sys.executable, "generate.py", "--model", str(chat), *arguments]
        command += ["--max_new_tokens", "3", "--kernels", "plain"]
        done = subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = start("--template", "chat", "--prompt", "1?", "--samples", "2")
    assert code == 0 and out.count("--- sample") == 2
    code, out, _ = start("--chat", "--system", SYSTEM, lines="1?\n2?\n\n3?\n")
    assert code == 0 and out.count("> ") == 3
    whole = start("--chat", lines="1?\n")[1].removeprefix("> ").rstrip("> \n")
    cut = start("--chat", "--stop", whole[1:2], lines="1?\n")[1].removeprefix("> ").rstrip("> \n")
    assert len(whole) > 1 and cut == whole[:1]
    code, out, error = start()
    assert code == 2 and error == "error: --prompt: give a text to complete, or use --chat\n"


@pytest.mark.parametrize("command", ["sft", "grpo", "ppo", "reward", "rollout", "eval", "audit"])
def test_a_model_without_a_template_is_refused(tiny, tmp_path, command):
    """In one line, in every command; so is "qwen" without its special tokens."""
    model, problems = str(tiny.root / "base"), [str(tiny.root / "problems.jsonl")]
    modules = {"rollout": rollout, "eval": evaluation, "audit": audit} | TRAINERS
    module = modules[command]
    for template, message in (("chat", "needs a chat template"), ("qwen", "needs the special")):
        if command in TRAINERS:
            arguments = options(command, tiny.root, tmp_path / "run", init=model, template=template)
            config = parse(module.Config, arguments)
        else:
            config = module.Config(model=model, problems=problems, template=template)
        if command == "rollout":
            config.to = str(tmp_path / "out.jsonl")
        with pytest.raises(
            InputError, match=f"^{re.escape(model)}: --template {template} {message}"
        ):
            module.main(config)
