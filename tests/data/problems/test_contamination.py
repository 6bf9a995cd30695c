"""data/problems/contamination.py against sets of tuples in Python, and on problems that are hidden
in shards and in lines of text."""

import json
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError, write_jsonl
from data.mine.ngrams import units
from data.problems import contamination
from data.problems.contamination import (
    beside,
    corpus_documents,
    main,
    overlap,
    read_problems,
    shard_documents,
)
from data.problems.problem import Problem
from data.shards import write_shards
from data.train_tokenizer import train

TEN = "one two three four five six seven eight nine ten"
CHINESE = "小明有三个苹果，小红给他五个，问他一共有几个？"


def problem(id, question, solution=None, **fields):
    return Problem(id, question, "1", solution, **fields)


def found(problems, *texts):
    """The overlap in documents: {benchmark: {id: fields}}."""
    result = overlap(problems, [(f"place {i}", text) for i, text in enumerate(texts)])
    return {name: row["overlapping"] for name, row in result["benchmarks"].items()}


@pytest.fixture(scope="module")
def tokenizer():
    return train(
        [TEN * 3, CHINESE, "naïve — text with ½ signs", "".join(map(chr, range(32, 500)))],
        300,
        workers=1,
    )


# ---- Overlap -------------------------------------------------------------------------------------


def test_the_report_of_a_few_problems():
    other = "apples and pears and plums are three kinds of fruit"
    problems = {
        "a": [
            problem("q", f"so {TEN} so?", "short"),
            problem("s", other, f"{TEN} eleven"),
            problem("clean", TEN.replace("five", "5")),
            problem("tiny", "3 * 2"),
        ],
        "b": [problem("three", "Sky is blue!"), problem("twin", f"{TEN} eleven twelve")],
        "c": [problem("formal", TEN, task={"formal_statement": f'theorem "{TEN}"'})],
    }
    texts = ["nothing here", f"... {TEN.upper()}\neleven", "why the sky, is blue", "3 * 2", TEN]
    result = overlap(problems, [(f"place {i}", text) for i, text in enumerate(texts)])
    assert (result["documents"], result["characters"]) == (5, sum(map(len, texts)))
    assert result["benchmarks"]["a"] == {
        "problems": 4,
        "question": {"problems": 1, "share": 0.25, "short": 0, "whole": 0},
        "question_or_solution": {"problems": 2, "share": 0.5},
        "overlapping": {"q": ["question"], "s": ["solution"]},
        "examples": [
            {"id": "q", "field": "question", "shared": TEN, "place": "place 1"},
            {"id": "s", "field": "solution", "shared": TEN, "place": "place 1"},
        ],
    }
    b, c = result["benchmarks"]["b"], result["benchmarks"]["c"]
    assert b["overlapping"] == {"three": ["question"], "twin": ["question"]}
    assert b["question"] == {"problems": 2, "share": 1.0, "short": 1, "whole": 1}
    assert [(example["shared"], example["place"]) for example in b["examples"]] == [
        ("sky is blue", "place 2"),
        (TEN, "place 1"),
    ]
    assert c["overlapping"] == {"formal": ["question"]}


def test_a_whole_question_may_be_seen_in_parts():
    question = f"{TEN} eleven twelve"
    for texts, whole in (
        ([question], 1),
        ([TEN, question[8:]], 0),
        ([TEN, question[8:], question[4:-7]], 1),
    ):
        result = overlap({"a": [problem("q", question)]}, [("", text) for text in texts])
        assert result["benchmarks"]["a"]["question"] == {
            "problems": 1,
            "share": 1.0,
            "short": 0,
            "whole": whole,
        }


def test_chinese_goes_by_characters():
    problems = {"zh": [problem("q", CHINESE), problem("r", CHINESE.replace("苹", "梨"))]}
    assert found(problems, "老师说：" + CHINESE[8:18]) == {"zh": {}}  # nine characters and a comma
    assert found(problems, "老师说：" + CHINESE[8:19]) == {
        "zh": {"q": ["question"], "r": ["question"]}
    }
    assert found(problems, CHINESE[:13].replace("，", " ")) == {"zh": {"q": ["question"]}}


def expected(problems, texts):
    """The rule, with sets of tuples."""
    words = [units(text) for text in texts]
    grams = {
        n: {tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)} for n in range(3, 11)
    }
    result = {name: {} for name in problems}
    for name, some in problems.items():
        for one in some:
            for field in ("question", "solution"):
                own = units(getattr(one, field) or "")
                n = min(len(own), 10)
                if n >= 3 and any(
                    tuple(own[i : i + n]) in grams[n] for i in range(len(own) - n + 1)
                ):
                    result[name].setdefault(one.id, []).append(field)
    return result


SENTENCES = st.lists(st.sampled_from("a b c 数 . 学".split()), max_size=24).map(" ".join)


@settings(max_examples=40)
@given(
    st.lists(SENTENCES, max_size=5),
    st.lists(st.tuples(SENTENCES, SENTENCES), min_size=2, max_size=6),
)
def test_overlap_is_that_of_sets(texts, pairs):
    some = [problem(str(i), question, solution) for i, (question, solution) in enumerate(pairs)]
    problems = {"even": some[::2], "odd": some[1::2]}
    assert found(problems, *texts) == expected(problems, texts)


def test_exactly_the_planted_problems_are_found():
    rng = random.Random(0)
    sentence = lambda n: " ".join(f"w{rng.randrange(5000)}" for _ in range(n))  # noqa: E731
    some = [problem(f"p{i}", sentence(rng.randrange(3, 60)), sentence(30)) for i in range(500)]
    planted = dict.fromkeys(rng.sample([one.id for one in some], 40))
    documents = [sentence(300) for _ in range(400)]
    for one in some:
        if one.id in planted:
            at, words = rng.randrange(400), one.question.split()
            begin = rng.randrange(max(1, len(words) - 9))
            documents[at] += f" and {' '.join(words[begin : begin + 10])} and {sentence(20)}"
            planted[one.id] = f"document {at}"
    result = overlap(
        {"b": some}, [(f"document {i}", text) for i, text in enumerate(documents)], examples=100
    )
    assert result["benchmarks"]["b"]["overlapping"] == {id: ["question"] for id in planted}
    places = {example["id"]: example["place"] for example in result["benchmarks"]["b"]["examples"]}
    assert places == planted


def test_no_problem_is_an_error():
    with pytest.raises(InputError, match="b: holds no problem"):
        overlap({"a": [problem("q", TEN)], "b": []}, [])


def test_what_stands_beside_a_score():
    right = {"a": [True, False], "b": [True, True], "c": [False, False], "d": [False, True]}
    records = [
        {"id": id, "attempts": [{"right": one} for one in ones]} for id, ones in right.items()
    ]
    question = {"problems": 1, "share": 0.25, "short": 0, "whole": 0}
    found = {
        "question": question,
        "overlapping": {"b": ["question"], "c": ["solution"]},
    }  # only a solution: does not count
    assert beside(records, found) == question | {
        "clean": {"problems": 3, "accuracy": 1 / 3},
        "overlapping": {"problems": 1, "accuracy": 1.0},
    }
    assert beside(records, found | {"overlapping": {}}) == question | {
        "clean": {"problems": 4, "accuracy": 0.5},
        "overlapping": {"problems": 0, "accuracy": None},
    }
    records[1]["attempts"][0]["right"] = None  # a proof that was not checked
    parts = beside(records, found)
    assert parts["overlapping"]["accuracy"] is None and parts["clean"]["accuracy"] == 1 / 3


# ---- Documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_tokens", [1, 40, 10**6])
@pytest.mark.parametrize("chunk", [300, 10**6])
def test_documents_of_shards_are_those_that_were_written(
    tokenizer, tmp_path, monkeypatch, shard_tokens, chunk
):
    monkeypatch.setattr(contamination, "_TOKENS", chunk)
    rng = random.Random(1)
    documents = [
        TEN,
        CHINESE,
        "",
        "naïve ½ \U0001f600",
        *(TEN[: rng.randrange(40)] for _ in range(60)),
    ]
    ids = tokenizer.encode_batch(documents)
    manifest = write_shards(
        ids, tmp_path, tokenizer.hash, "s", tokenizer.vocab_size, tokenizer.eos_id, shard_tokens
    )
    assert (len(manifest["files"]) > 2) == (shard_tokens < 10**6)
    assert list(shard_documents(tmp_path, tokenizer)) == [
        (f"{tmp_path}, document {i}", text) for i, text in enumerate(documents, 1)
    ]


@pytest.mark.parametrize("eos", [True, False])
def test_a_long_document_comes_in_parts_that_overlap(tokenizer, tmp_path, monkeypatch, eos):
    monkeypatch.setattr(contamination, "_TOKENS", 300)
    words = [f"w{i}" for i in range(700)]
    ids = tokenizer.encode_batch([" ".join(words), TEN])
    write_shards(
        ids,
        tmp_path,
        tokenizer.hash,
        "s",
        tokenizer.vocab_size,
        tokenizer.eos_id if eos else None,
        50,
    )
    documents = list(shard_documents(tmp_path, tokenizer))
    assert len(documents) > 5 and (documents[-1] == (f"{tmp_path}, document 2", TEN)) == eos
    problems = {"b": [problem(str(i), " ".join(words[i : i + 10])) for i in range(0, 691)]}
    result = overlap(problems, documents)["benchmarks"]["b"]
    assert (
        result["question"]["whole"] == 690 + eos
    )  # without it the last word runs into the next document


def test_a_problem_in_shards_has_its_place(tokenizer, tmp_path):
    documents = ["x", f"before {TEN} after", CHINESE]
    write_shards(
        tokenizer.encode_batch(documents),
        tmp_path,
        tokenizer.hash,
        "s",
        tokenizer.vocab_size,
        tokenizer.eos_id,
        shard_tokens=1,
    )
    result = overlap(
        {"b": [problem("q", TEN)], "zh": [problem("z", CHINESE)]},
        shard_documents(tmp_path, tokenizer),
    )
    places = [result["benchmarks"][name]["examples"][0]["place"] for name in ("b", "zh")]
    assert places == [f"{tmp_path}, document 2", f"{tmp_path}, document 3"]


def test_shards_of_another_tokenizer_are_refused(tokenizer, tmp_path):
    write_shards([[1, 2]], tmp_path, "0" * 64, "s", tokenizer.vocab_size, tokenizer.eos_id)
    with pytest.raises(InputError, match="made with tokenizer 000000000000"):
        list(shard_documents(tmp_path, tokenizer))


# ---- Command -------------------------------------------------------------------------------------


def test_the_command(tokenizer, tmp_path, capsys):
    write_jsonl(
        tmp_path / "bench.jsonl",
        [
            {"id": "q", "question": TEN, "answer": "1"},
            {"id": "r", "question": CHINESE, "answer": "8", "solution": TEN[4:]},
        ],
    )
    write_jsonl(
        tmp_path / "sft.jsonl",
        [
            {"question": "x", "response": "y", "format": "cot"},
            {"question": "Say:", "response": f"{TEN}."},
        ],
    )
    write_jsonl(tmp_path / "pages.jsonl", [{"text": "no"}, {"text": CHINESE}])
    tokenizer.save(tmp_path / "model")
    write_shards(
        tokenizer.encode_batch([f"{TEN[:30]} {TEN[4:]}"]),
        tmp_path / "shards",
        tokenizer.hash,
        "s",
        tokenizer.vocab_size,
        tokenizer.eos_id,
    )
    shared = ["--benchmarks", f"{tmp_path}/bench.jsonl", "--to", f"{tmp_path}/to/report.json"]
    result = main([*shared, "--corpus", f"{tmp_path}/sft.jsonl", f"{tmp_path}/pages.jsonl"])
    assert json.loads((tmp_path / "to/report.json").read_text()) == result
    assert result["documents"] == 4 and result["benchmarks"]["bench"]["overlapping"] == {
        "q": ["question"],
        "r": ["question", "solution"],
    }
    place = result["benchmarks"]["bench"]["examples"][0]["place"]
    assert place == f"{tmp_path}/sft.jsonl, document 2"
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split() == ["bench", "2", "2", "100.00%", "0", "2", "2", "100.00%"]
    result = main([*shared, "--shards", f"{tmp_path}/shards", "--tokenizer", f"{tmp_path}/model"])
    assert result["benchmarks"]["bench"]["overlapping"] == {
        "r": ["solution"]
    }  # nine words of the other question
    for wrong, message in (
        (shared, "nothing to search"),
        ([*shared, "--shards", "x"], "--shards needs --tokenizer"),
        ([*shared[:2], *shared[1:], "--corpus", "x"], "bench comes twice"),
        ([*shared, "--corpus", f"{tmp_path}/none.jsonl"], "none.jsonl"),
    ):
        with pytest.raises(InputError, match=message):
            main(wrong)


def test_benchmarks_of_a_data_folder_are_read_by_name(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [{"question": TEN, "answer": "so\n#### 3"}])
    assert list(read_problems([tmp_path])) == ["gsm8k"]
    shutil.move(tmp_path / "gsm8k/test.jsonl", tmp_path / "gsm8k/own.jsonl")
    assert list(read_problems([tmp_path / "gsm8k"])) == [
        "gsm8k"
    ]  # all files of a folder have the name of the folder


def test_real_problems_are_found_in_the_corpus_they_were_put_in(real, tmp_path):
    folder = real("gsm8k").parent
    problems = {name: some for name, some in read_problems([folder]).items() if len(some) < 4000}
    assert {
        "gsm8k",
        "mmlu_stem",
        "mgsm_zh",
        "cmath",
        "humaneval",
        "minif2f_test",
    } <= problems.keys()
    rng, planted, lines = (
        random.Random(2),
        {name: set() for name in problems},
        [{"text": "nothing"}],
    )
    for name, some in problems.items():
        for one in rng.sample(some, 5):
            planted[name].add(one.id)
            lines.append({"text": f"Before. {one.question}\n\nAfter."})
    write_jsonl(tmp_path / "corpus.jsonl", lines)
    result = overlap(problems, corpus_documents([tmp_path / "corpus.jsonl"]))["benchmarks"]
    for name, some in problems.items():
        want = {one.id for one in some if one.id in planted[name] and len(units(one.question)) >= 3}
        have = {id for id, fields in result[name]["overlapping"].items() if "question" in fields}
        assert want <= have, name
    assert (
        result["gsm8k"]["overlapping"].keys() == planted["gsm8k"]
    )  # whose questions have nothing in common
