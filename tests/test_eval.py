"""eval.py: a model whose answers are known, runs that are stopped, and every wrong input."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import training
from evaluating import evaluate
from test_generate import bigram_model

import eval as evaluation
from data.io import write_jsonl
from data.problems.problem import Problem
from data.sandbox.sandbox import Sandbox
from data.tokenizer import Tokenizer
from data.train_tokenizer import train
from evaluation.metrics import summarize, wilson
from evaluation.solve import Solver
from generate import Sampling, generate
from model import ModelConfig, Transformer
from runtime.hf import save_pretrained
from runtime.run import command as run_program

ROOT = Path(__file__).parents[1]

# --------------------------------------------------------------------------------------------------
# A model that after a prompt's last token, ":", writes one of three completions, whatever the question

TEXT, OTHER, PROGRAM = " The answer is 7.", " The answer is 8.", "\nprint(3+4)"
QUESTIONS = ["Ann has 3 pens and buys 4. How many?", "What is 5 + 3?", "What is 2 + 2?"]
PROBLEMS = [
    Problem(f"p{i}", q, a) for i, (q, a) in enumerate(zip(QUESTIONS, ["7", "8", "4"], strict=True))
]


@pytest.fixture(scope="module")
def tokenizer():
    return train([TEXT + OTHER + PROGRAM + "Question: Answer: Program:"] * 3, 300, workers=1)


def answering(tokenizer, **weights):
    """The model that writes each text (a keyword each: text=, other=, program=) with the given
    probability.
    """
    following = {}
    for name, weight in weights.items():
        text = {"text": TEXT, "other": OTHER, "program": PROGRAM}[name]
        ids = [tokenizer.encode(":")[0], *tokenizer.encode(text), tokenizer.eos_id]
        for a, b in itertools.pairwise(ids):
            following.setdefault(a, Counter())[b] += weight
    shares = {
        a: {b: w / sum(next_.values()) for b, w in next_.items()} for a, next_ in following.items()
    }
    model = bigram_model(shares, tokenizer.vocab_size, context=256)
    model.config.eos_id = tokenizer.eos_id
    return model


@pytest.fixture(scope="module")
def world(tokenizer, tmp_path_factory):
    """root/model, root/problems.jsonl, and the directory in which further files are made."""
    root = tmp_path_factory.mktemp("eval")
    save_pretrained(answering(tokenizer, text=0.6, other=0.2, program=0.2), root / "model")
    tokenizer.save(root / "model")
    write_jsonl(
        root / "problems.jsonl",
        [{"id": p.id, "question": p.question, "answer": p.answer} for p in PROBLEMS],
    )
    return root


def test_greedy_answers(tokenizer):
    model = answering(tokenizer, text=0.9, other=0.1)
    counted = []
    sampling = Sampling(temperature=0, max_new_tokens=50)
    metrics, records = evaluate(
        model, tokenizer, PROBLEMS, "cot", sampling, progress=counted.append
    )
    assert metrics["accuracy"] == pytest.approx(1 / 3) and metrics["interval"] == wilson(1, 3)
    assert metrics["no_answer"] == metrics["truncated"] == 0
    length = len(tokenizer.encode(TEXT)) + 1  # and EOS
    assert metrics["tokens"] == length and sum(counted) == 3
    prompt = len(tokenizer.encode(f"Question: {QUESTIONS[0]}\nAnswer:"))
    right = {"right": True, "reason": "equal", "strict": True, "strict_reason": "equal"}
    assert records[0] == {
        "id": "p0",
        "question": QUESTIONS[0],
        "answer": "7",
        "kind": "answer",
        "section": "",
        "shots": 0,
        "prompt_tokens": prompt,
        "attempts": [{"text": TEXT, "answer": "7", "finish": "eos", "tokens": length} | right],
    }
    for one in records[1:]:
        (attempt,) = one["attempts"]
        said = [attempt[key] for key in ("answer", "right", "reason", "strict")]
        assert said == ["7", False, "value", False]
    assert sampling.stop == ()  # the caller's settings are as they were

    short, _ = evaluate(
        model, tokenizer, PROBLEMS, "cot", Sampling(temperature=0, max_new_tokens=2)
    )
    assert short["truncated"] == short["no_answer"] == 1 and short["accuracy"] == 0


def test_completions_end_where_the_next_question_begins(tokenizer):
    """A base model does not know EOS: it goes on with a question of its own."""
    ids = [*tokenizer.encode(":" + TEXT), *tokenizer.encode("\nQuestion: 1")]
    model = bigram_model(
        {a: {b: 1.0} for a, b in itertools.pairwise(ids[:-3])} | {ids[-4]: {ids[0]: 1.0}},
        tokenizer.vocab_size,
        context=256,
    )
    metrics, records = evaluate(
        model, tokenizer, PROBLEMS[:1], "cot", Sampling(temperature=0, max_new_tokens=50)
    )
    assert (
        records[0]["attempts"][0]["text"] == TEXT and records[0]["attempts"][0]["finish"] == "stop"
    )
    assert metrics["accuracy"] == 1


@pytest.mark.parametrize("format", ["cot", "pot"])
def test_sampled_answers(tokenizer, format):
    """Half the completions are a program that prints 7, the others a sentence: 7 as often as 8."""
    model, K = answering(tokenizer, text=0.25, other=0.25, program=0.5), 40
    with Sandbox(workers=1) as sandbox:
        metrics, records = evaluate(
            model,
            tokenizer,
            PROBLEMS,
            format,
            Sampling(K, max_new_tokens=50),
            sandbox=sandbox,
            max_rows=16,
        )
    expected = {
        "cot": {TEXT: "7", OTHER: "8", PROGRAM: None},
        "pot": {TEXT: None, OTHER: None, PROGRAM: "7"},
    }[format]
    right = []
    for record, problem in zip(records, PROBLEMS, strict=True):
        assert len(record["attempts"]) == K
        for a in record["attempts"]:
            assert a["answer"] == expected[a["text"]] and a["right"] == (
                a["answer"] == problem.answer
            )
        assert {a["text"] for a in record["attempts"]} == {TEXT, OTHER, PROGRAM}
        right.append(sum(a["right"] for a in record["attempts"]))
    assert metrics == summarize(records)
    assert metrics["accuracy"] == pytest.approx(sum(right) / (3 * K))
    share = {"cot": [0.25, 0.25, 0], "pot": [0.5, 0, 0]}[format]
    assert [n / K for n in right] == pytest.approx(share, abs=4 * math.sqrt(0.25 / K))
    assert metrics["maj@40"] == pytest.approx({"cot": metrics["maj@40"], "pot": 1 / 3}[format])
    assert metrics["pass@40"] == pytest.approx({"cot": 2 / 3, "pot": 1 / 3}[format])


def test_the_samples_are_those_of_generate(tokenizer):
    model = Transformer(
        ModelConfig(
            tokenizer.vocab_size, width=16, layers=1, heads=2, kv_heads=1, ffn=16, context=64
        )
    )
    sampling = Sampling(3, 0.8, 0.9, max_new_tokens=8, seed=5)
    _, records = evaluate(model, tokenizer, PROBLEMS, "cot", sampling)
    encoded = [tokenizer.encode(f"Question: {p.question}\nAnswer:") for p in PROBLEMS]
    for record, group in zip(records, generate(model, tokenizer, encoded, sampling), strict=True):
        assert [(a["text"], a["tokens"], a["finish"]) for a in record["attempts"]] == [
            (tokenizer.decode(s.ids), len(s.ids), s.finish) for s in group
        ]


# --------------------------------------------------------------------------------------------------
# The command


def command(monkeypatch, **options):
    """Runs eval.py's command with these options in this process; returns its exit code."""
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["eval.py", "--device", "cpu", *arguments])
    try:
        run_program(evaluation.main, evaluation.Config)
    except SystemExit as stop:
        return stop.code
    return 0


def test_command_writes_results_and_records(world, tmp_path):
    options = f"--model {world / 'model'} --problems {world / 'problems.jsonl'} --formats cot,pot --samples 4 --limit 2"
    options += f" --temperature 1 --max_new_tokens 40 --seed 1 --device cpu --to {tmp_path}"
    done = subprocess.run(
        [sys.executable, "eval.py", *options.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "results.json").read_text())
    assert list(document["results"]) == ["problems.cot", "problems.pot"]
    for name, metrics in document["results"].items():
        records = [
            json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
        ]
        assert [record["id"] for record in records] == ["p0", "p1"]
        assert json.loads(json.dumps(summarize(records))).items() <= metrics.items()
        assert {a["text"] for record in records for a in record["attempts"]} <= {
            TEXT,
            OTHER,
            PROGRAM,
        }
        (line,) = [line for line in done.stdout.splitlines()[1:] if f" {name[-3:]} " in line]
        assert (
            f"{100 * metrics['accuracy']:.1f} % (" in line
            and f" {100 * metrics['maj@4']:.1f} % " in line
        )
        assert metrics["tokens_per_second"] == pytest.approx(
            metrics["tokens"] * 2 * 4 / metrics["seconds"]
        )
    assert document["settings"]["temperature"] == 1 and document["settings"]["formats"] == [
        "cot",
        "pot",
    ]
    assert (
        document["versions"]["torch"] == torch.__version__
        and len(document["model"]["sha256"]) == 64
    )
    assert document["sandbox"]["active"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "problems.cot.jsonl",
        "problems.pot.jsonl",
        "results.json",
        "table.md",
    ]


def test_bf16_keeps_the_matrices_of_the_blocks_in_bfloat16(world, monkeypatch, capsys):
    models = []
    monkeypatch.setattr(
        evaluation,
        "Solver",
        lambda model, *rest, **more: models.append(model) or Solver(model, *rest, **more),
    )
    options = dict(model=world / "model", problems=world / "problems.jsonl", max_new_tokens=40)
    tables = []
    for bf16 in ("none", "true"):
        assert command(monkeypatch, **options, bf16=bf16) == 0
        tables.append(capsys.readouterr().out.split(" tokens/s", 1)[1].split()[:3])
    types = [
        {module.weight.dtype for module in m.layers.modules() if hasattr(module, "multiply")}
        for m in models
    ]
    assert types == [{torch.float32}, {torch.bfloat16}]
    assert tables[0] == tables[1]


def test_what_training_has_seen_stands_beside_the_score(world, tmp_path, monkeypatch, capsys):
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": f"Once more: {QUESTIONS[0]} And more."}])
    options = dict(
        model=world / "model", problems=world / "problems.jsonl", corpus=tmp_path / "corpus.jsonl"
    )
    assert command(monkeypatch, **options, to=tmp_path / "out") == 0
    one = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["problems.cot"][
        "contamination"
    ]
    assert (one["problems"], one["share"]) == (1, 1 / 3)
    assert one["overlapping"] == {"problems": 1, "accuracy": 1.0} and one["clean"] == {
        "problems": 2,
        "accuracy": 0.0,
    }
    out = capsys.readouterr().out  # greedy always says 7, which is right of the first problem alone
    assert " 33.3 % " in out and "accuracy of those 100.0 %, of the other 2 0.0 %" in out


def test_command_without_a_directory_writes_nothing(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, model=world / "model", problems=world / "problems.jsonl") == 0
    assert " 33.3 % (6.1 - 79.2)" in capsys.readouterr().out  # greedy always says 7
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with three benchmarks, one of which has a bad record, and one that cannot be
    read.
    """
    root = tmp_path_factory.mktemp("data")
    for place in ("gsm8k", "bbh/bbh", "mmlu/test", "humaneval"):
        (root / place).mkdir(parents=True)
    rows = [
        {"question": q, "answer": f"It is so.\n#### {a}"}
        for q, a in zip(QUESTIONS, "784", strict=True)
    ]
    write_jsonl(root / "gsm8k/test.jsonl", [*rows[:2], {"question": "No answer?"}, rows[2]])
    for task, targets in (("a_task", ["7", "seven"]), ("b_task", ["7"])):
        text = json.dumps({"examples": [{"input": f"Question {t}", "target": t} for t in targets]})
        (root / f"bbh/bbh/{task}.json").write_text(text)
    (root / "mmlu/test/algebra_test.csv").write_text('"What is 5 + 2?",6,7,8,9,B\n')
    (root / "humaneval/HumanEval.jsonl").write_text("{}\nnot JSON\n")
    return root


def test_benchmarks_that_are_there(world, folder, tmp_path, monkeypatch, capsys):
    assert (
        command(monkeypatch, model=world / "model", data=folder, to=tmp_path, max_new_tokens=40)
        == 0
    )
    document = json.loads((tmp_path / "results.json").read_text())
    found = {
        name: (one["problems"], one["accuracy"], one["strict"])
        for name, one in document["results"].items()
    }
    third = pytest.approx(1 / 3)
    assert found == {  # greedily it says 7 whatever the question, also where a program is asked for
        "gsm8k.cot": (3, third, third),
        "gsm8k.pot": (3, 0, 0),
        "gsm8k.tool": (3, third, third),
        "mmlu.cot": (1, 1, 0),
        "bbh.cot": (3, 0.75, 0.75),  # the mean of 1/2 and 1/1
    }
    assert (
        document["results"]["gsm8k.cot"]["paper"] == third
        and "paper" not in document["results"]["gsm8k.pot"]
    )
    assert document["results"]["bbh.cot"]["sections"] == {"a_task": 0.5, "b_task": 1}
    assert document["results"]["gsm8k.pot"]["programs"] == {"error": 3}
    assert (
        document["absent"]["math"][0] == str(folder / "MATH/test")
        and "gsm8k" not in document["absent"]
    )
    assert "agieval_sat" not in document["absent"]  # not the paper's
    assert list(document["bad"]) == ["gsm8k", "humaneval"]
    assert document["bad"]["gsm8k"][0].startswith(f"{folder}/gsm8k/test.jsonl:3: ")
    assert f"{folder}/humaneval/HumanEval.jsonl" in document["bad"]["humaneval"][-1]
    for text in (capsys.readouterr().out, (tmp_path / "table.md").read_text()):
        assert f"absent: math (looked for {folder}/MATH/test, " in text
        assert "bad records left out of gsm8k: 1\n" in text and "humaneval: not evaluated: " in text
        assert re.search(r"bbh +\|? *cot +\|? *3 +\|? *75.0 % \(", text)
    # one benchmark, one format; a number of exemplars that there is room for
    options = dict(
        model=world / "model", data=folder, benchmarks="gsm8k", formats="cot", max_new_tokens=1
    )
    assert command(monkeypatch, **options, shots=1, to=tmp_path / "one") == 0
    document = json.loads((tmp_path / "one/results.json").read_text())
    assert list(document["results"]) == ["gsm8k.cot"] and document["absent"] == {}
    assert (
        document["results"]["gsm8k.cot"]["shots"] == 0
    )  # none has room in 256 tokens of two bytes each


def test_prompts_of_others(world, folder, tmp_path, monkeypatch, capsys):
    """A file with prompts for one benchmark of two; where one is named for which it has none, that
    is an error.
    """
    entry = {
        "few_shot_prompt": "Q: 1 + 1?\nA: 2",
        "stop_words": ["\nQ:"],
        "template": "{few_shot_prompt}\n\nQ: {question}\nA:{partial_answer}",
    }
    (tmp_path / "prompts.json").write_text(json.dumps({"gsm8k.cot": entry}))
    options = dict(
        model=world / "model",
        data=folder,
        prompts=tmp_path / "prompts.json",
        formats="cot",
        to=tmp_path,
    )
    assert command(monkeypatch, **options, max_new_tokens=40) == 0
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert results["gsm8k.cot"]["shots"] == 1 and "note" not in results["gsm8k.cot"]
    assert (
        "our exemplars" in results["bbh.cot"]["note"]
        and "bbh.cot: --prompts has none" in capsys.readouterr().out
    )
    texts = [
        json.loads(line)["prompt_tokens"]
        for line in (tmp_path / "gsm8k.cot.jsonl").read_text().splitlines()
    ]
    tokenizer = Tokenizer.load(world / "model")
    assert texts == [
        len(tokenizer.encode(f"Q: 1 + 1?\nA: 2\n\nQ: {question}\nA:")) for question in QUESTIONS
    ]
    named = options | {
        "benchmarks": "gsm8k",
        "to": tmp_path / "named",
        "limit": 1,
        "max_new_tokens": 4,
    }
    del named[
        "formats"
    ]  # the benchmark by name, its ways of solving not: ours where the file has none
    assert command(monkeypatch, **named) == 0
    results = json.loads((tmp_path / "named" / "results.json").read_text())["results"]
    assert "note" not in results["gsm8k.cot"] and "our exemplars" in results["gsm8k.pot"]["note"]
    for changes, message in (
        ({"benchmarks": "bbh"}, "prompts.json: has no prompt for bbh"),
        ({"benchmarks": "gsm8k", "shots": 2}, "--shots 2: "),
        ({"prompts": folder / "gsm8k/test.jsonl"}, "test.jsonl"),
    ):
        assert command(monkeypatch, **(options | {"to": tmp_path / "none"} | changes)) == 2
        assert message in capsys.readouterr().err


def test_a_sandbox_that_cannot_start_is_named(world, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/absent/python")
    options = dict(model=world / "model", problems=world / "problems.jsonl")
    assert command(monkeypatch, **options, formats="pot") == 2
    error = training.without_news(capsys.readouterr().err)
    assert "the sandbox could not start /absent/python" in error and error.count("\n") == 1
    assert command(monkeypatch, **options, formats="cot") == 0


def results_of(folder):
    """What must not depend on stops: figures without times, and records."""
    figures = json.loads((folder / "results.json").read_text())["results"]
    records = {name: (folder / f"{name}.jsonl").read_text() for name in figures}
    timing = ("seconds", "tokens_per_second")
    return {
        name: {k: v for k, v in one.items() if k not in timing} for name, one in figures.items()
    }, records


def test_a_stopped_run_goes_on(world, tmp_path, monkeypatch, capsys):
    """Killed by SIGKILL, then stopped by SIGTERM, each time between two chunks of whatever size."""
    write_jsonl(
        tmp_path / "many.jsonl",
        [{"question": f"What is {n}?", "answer": str(n)} for n in range(24)],
    )
    options = dict(
        model=world / "model",
        problems=tmp_path / "many.jsonl",
        samples=4,
        temperature=1,
        max_new_tokens=40,
    )
    assert command(monkeypatch, **options, to=tmp_path / "whole") == 0
    to = tmp_path / "stopped"
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    arguments = [
        sys.executable,
        "eval.py",
        "--device",
        "cpu",
        *words,
        "--to",
        str(to),
        "--chunk",
        "1",
    ]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while len(list(to.glob("partial/many.cot/*.json"))) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    killed = len(list(to.glob("partial/many.cot/*.json")))
    assert 3 <= killed < 24 and not (to / "results.json").exists()

    real = Solver.solve

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Solver, "solve", interrupted)
        assert command(monkeypatch, **options, to=to, chunk=2) == 143
    assert "the same command continues from there" in capsys.readouterr().err
    assert (
        len(list(to.glob("partial/many.cot/*.json"))) == killed + 1
        and not (to / "results.json").exists()
    )

    for change, reason in (
        ({"temperature": 0.5}, "--temperature 1.0, not 0.5"),
        ({"limit": 3}, "--limit 0, not 3"),
    ):
        assert command(monkeypatch, **(options | change), to=to) == 2
        assert reason in capsys.readouterr().err
    asked = []

    def noted(solver, problems, *arguments):
        asked.extend(problems)
        return real(solver, problems, *arguments)

    monkeypatch.setattr(Solver, "solve", noted)
    assert command(monkeypatch, **options, to=to, chunk=5) == 0
    assert len(asked) == 24 - killed - min(2, 24 - killed)
    assert results_of(to) == results_of(tmp_path / "whole")
    assert sorted(path.name for path in to.iterdir()) == [
        "many.cot.jsonl",
        "results.json",
        "table.md",
    ]


def test_what_has_finished_is_not_repeated(world, tmp_path, monkeypatch, capsys):
    calls, real = [], Solver.solve

    def noted(solver, problems, format, *arguments):
        calls.append(format)
        return real(solver, problems, format, *arguments)

    monkeypatch.setattr(Solver, "solve", noted)
    model = tmp_path / "model"
    shutil.copytree(world / "model", model)
    options = dict(model=model, problems=world / "problems.jsonl", to=tmp_path / "out")
    for formats in ("cot", "pot,cot"):
        assert command(monkeypatch, **options, formats=formats) == 0
    written = (tmp_path / "out/results.json").read_bytes()
    for formats in ("cot", "cot,pot"):
        assert command(monkeypatch, **options, formats=formats) == 0
    assert calls == ["cot", "pot"] and (tmp_path / "out/results.json").read_bytes() == written
    assert not (tmp_path / "out/partial").exists()
    assert set(json.loads((tmp_path / "out/results.json").read_text())["results"]) == {
        "problems.cot",
        "problems.pot",
    }
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert command(monkeypatch, **options, formats="cot") == 2
    assert "other weights than" in capsys.readouterr().err


def test_a_prompt_too_long_is_counted(tokenizer):
    model = answering(tokenizer, text=1.0)
    items = [PROBLEMS[0], Problem("endless", "why " * 300, "7"), PROBLEMS[0]]
    counted = []
    metrics, records = evaluate(
        model, tokenizer, items, "cot", Sampling(2, max_new_tokens=50), progress=counted.append
    )
    unasked = {
        "text": "",
        "answer": None,
        "finish": "prompt",
        "tokens": 0,
        "right": False,
        "reason": "no_answer",
        "strict": False,
        "strict_reason": "no_answer",
    }
    assert records[1]["attempts"] == [unasked] * 2 and sum(counted) == 6
    assert metrics["no_room"] == metrics["no_answer"] == pytest.approx(1 / 3)
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["problems"] == 3


def wrong_inputs(world):
    """name -> (options that differ, what the message must say)"""
    (world / "empty.jsonl").write_text("")
    (world / "again").mkdir(exist_ok=True)
    (world / "again" / "problems.jsonl").write_text((world / "problems.jsonl").read_text())
    other = train(["Two words, two words"], 300, workers=1)
    save_pretrained(Transformer(ModelConfig(257, 16, 1, 2, 1, 16)), world / "foreign")
    other.save(world / "foreign")
    save_pretrained(Transformer(ModelConfig(257, 16, 1, 2, 1, 16)), world / "bare")
    both = f"{world / 'problems.jsonl'},{world / 'again' / 'problems.jsonl'}"
    return {
        "no model": ({"model": world / "absent"}, "absent"),
        "no tokenizer": ({"model": world / "bare"}, "tokenizer.json"),
        "another tokenizer": ({"model": world / "foreign"}, "does not belong to this checkpoint"),
        "no problem file": ({"problems": world / "absent.jsonl"}, "absent.jsonl: cannot be read"),
        "empty problem file": ({"problems": world / "empty.jsonl"}, "empty.jsonl"),
        "two of one name": ({"problems": both}, "problems.cot: there are two of this name"),
        "format": ({"formats": "cot,poem"}, "--formats cot,poem: unknown"),
        "template": ({"template": "fancy"}, "--template fancy: unknown"),
        "greedy samples": ({"samples": 2}, "--temperature above 0"),
        "no samples": ({"samples": 0}, "--samples 0: out of range; give an integer at least 1"),
        "no rows": ({"max_rows": 0}, "--max_rows 0: out of range; give an integer at least 1"),
        "no rounds": ({"rounds": 0}, "--rounds 0: out of range; give an integer at least 1"),
        "no chunk": ({"chunk": 0}, "--chunk 0: out of range; give an integer at least 1"),
        "shots": ({"shots": -2}, "--shots -2: out of range; give an integer at least -1"),
        "length": (
            {"max_new_tokens": -1},
            "--max_new_tokens -1: out of range; give an integer at least 0",
        ),
        "temperature": ({"temperature": -0.5}, "--temperature -0.5: out of range"),
        "top_p": ({"top_p": 0}, "--top_p 0: out of range"),
        "sandbox": ({"sandbox": "none"}, "--sandbox none: unknown; choose strict or best-effort"),
        "no folder": ({"data": world / "absent"}, "absent: not a folder"),
        "nothing in it": ({"data": world, "problems": ""}, "there is no benchmark to evaluate; "),
        "no such benchmark": ({"data": world, "benchmarks": "gsm9k"}, "benchmark 'gsm9k': unknown"),
        "benchmarks of no folder": ({"benchmarks": "gsm8k"}, "need --data FOLDER"),
        "negative limit": ({"limit": -1}, "--limit -1: out of range; give an integer at least 0"),
        "nothing given": (
            {"model": ""},
            "--model DIR and --problems FILE or --data FOLDER are needed",
        ),
        "unknown option": ({"modle": "x"}, "--modle: unknown option"),
    }


NAMES = [
    "no model",
    "no tokenizer",
    "another tokenizer",
    "no problem file",
    "empty problem file",
    "two of one name",
    "format",
    "template",
    "greedy samples",
    "no samples",
    "no rows",
    "no rounds",
    "no chunk",
    "shots",
    "length",
    "temperature",
    "top_p",
    "sandbox",
    "no folder",
    "nothing in it",
    "no such benchmark",
    "benchmarks of no folder",
    "negative limit",
    "nothing given",
    "unknown option",
]


@pytest.fixture(scope="module")
def wrong(world):
    inputs = wrong_inputs(world)
    assert list(inputs) == NAMES
    return inputs


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_one_line_and_exit_code_2(world, wrong, name, tmp_path, monkeypatch, capsys):
    changes, message = wrong[name]
    options = (
        dict(model=world / "model", problems=world / "problems.jsonl", to=tmp_path / "out")
        | changes
    )
    assert command(monkeypatch, **options) == 2
    out, err = capsys.readouterr()
    err = training.without_news(err)
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert out == "" and not (tmp_path / "out").exists()
