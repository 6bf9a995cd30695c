"""experiments/figure3.py: corpora of files and folders, epochs, the table, what is refused, and a
whole tiny figure.
"""

import contextlib
import json
from runtime.options import check, parse

import pytest
import training
from hypothesis import given, settings
from hypothesis import strategies as st

import eval
import train_pretrain
from data.io import InputError, write_jsonl
from data.shards import Mixture, Shards, write_shards
from data.world import synthetic
from experiments import common, figure3
from experiments.figure3 import Config, corpus_files, epochs, main, table

TRAINING = "context = 32\nbatch = 4\nmicro_batch = 4\nlr = 3e-3\nwarmup = 2\nsave_every = 100\n"


def pages(kind: str, count: int, split: str = "train") -> list[dict]:
    return [
        {"text": synthetic.document(i, kind, split), "url": f"a.example/{i}"} for i in range(count)
    ]


@settings(max_examples=50)
@given(tokens=st.integers(6, 200), context=st.integers(2, 5), rows=st.integers(1, 300))
def test_epochs_are_what_the_mixture_goes_through(tmp_path_factory, tokens, context, rows):
    """After `rows` windows every one of the corpus was drawn epochs times, rounded down or up."""
    folder = tmp_path_factory.mktemp("shards")
    with training.in_tests():
        write_shards([list(range(tokens))], folder, "hash", "corpus", tokens)
    drawn = Mixture({"corpus": folder}, {"corpus": 1.0}, context).next_batch(rows)[0][:, 0].tolist()
    times = epochs(tokens, context, rows)
    windows = range(0, (tokens - 1) // context * context, context)
    assert sum(drawn.count(start) for start in windows) == rows
    assert all(times - 1 < drawn.count(start) < times + 1 for start in windows)


def test_epochs_by_hand():
    assert epochs(1001, 100, 25) == 2.5
    assert epochs(1000, 100, 18) == 2.0  # nine windows: the tenth would need one token more


def test_a_corpus_is_a_file_or_a_folder_of_them_in_order(tmp_path):
    for name in ("part-00001.jsonl", "part-00000.jsonl", ".part-00002.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    write_jsonl(tmp_path / "drops" / "part-00000.jsonl", [{}])  # what decontamination took out
    assert [file.name for file in corpus_files("x", tmp_path)] == [
        "part-00000.jsonl",
        "part-00001.jsonl",
    ]
    assert corpus_files("x", tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


@pytest.fixture
def config(tmp_path):
    """config(...): options of a tiny figure whose text is in tmp_path, with changes."""
    write_jsonl(tmp_path / "math.jsonl", pages("math", 40))
    write_jsonl(tmp_path / "valid.jsonl", pages("math", 12, "valid"))
    (tmp_path / "training.toml").write_text(TRAINING)

    def make(**changes) -> Config:
        chosen = dict(
            corpora={"mined": str(tmp_path / "math.jsonl")},
            valid={"held": str(tmp_path / "valid.jsonl")},
            training=str(tmp_path / "training.toml"),
            to=str(tmp_path / "to"),
            vocab_size=300,
            seeds=1,
            steps=5,
            points=2,
            valid_windows=8,
            max_new_tokens=4,
        )
        return Config(**(chosen | changes))

    return make


@pytest.fixture
def nothing_is_run(monkeypatch):
    monkeypatch.setattr(figure3, "run", lambda *_: pytest.fail("training was begun"))


@pytest.fixture
def runs(monkeypatch):
    """Commands are run in this process, one after the other, and listed here: starting Python takes
    far longer.
    """
    started = []

    def run(done, script, *words):
        if not done.exists():
            started.append((script, done))
            module = {"train_pretrain.py": train_pretrain, "eval.py": eval}[script]
            with training.in_tests(), contextlib.redirect_stdout(None):
                module.main(parse(module.Config, [str(word) for word in words]))

    monkeypatch.setattr(figure3, "run", run)
    monkeypatch.setattr(common, "parallel", lambda jobs, tasks: [task() for task in tasks])
    return started


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(corpora={}), "--corpora is needed"),
        (dict(valid={}), "--valid is needed"),
        (dict(seeds=0), "--seeds 0: out of range"),
        (dict(formats="tool"), "--formats tool: unknown"),
        (dict(problems=["nowhere.jsonl"]), "nowhere.jsonl"),
    ],
)
def test_options_are_checked_before_the_work(config, nothing_is_run, changes, message):
    with pytest.raises(InputError, match=message):
        check(config(**changes))
        main(config(**changes))


def test_a_corpus_that_cannot_be_used_is_named(config, tmp_path, nothing_is_run):
    good = config().corpora
    (tmp_path / "empty").mkdir()
    write_jsonl(tmp_path / "blank.jsonl", [])
    write_jsonl(tmp_path / "few.jsonl", [{"text": "1 + 1 = 2"}])
    write_jsonl(tmp_path / "bad.jsonl", [{"text": "1 + 1 = 2"}, {"url": "a.example"}])
    for number, (path, message) in enumerate(
        [
            ("nowhere", "--corpora crawl=.*nowhere: does not exist"),
            ("empty", "empty: no .jsonl file in this folder"),
            ("blank.jsonl", "crawl: no tokens"),
            ("few.jsonl", r"--corpora crawl: \d+ tokens are fewer than one window of 33"),
            ("bad.jsonl", "bad.jsonl:2: no document"),
        ]
    ):
        own = dict(corpora=good | {"crawl": str(tmp_path / path)}, to=str(tmp_path / str(number)))
        with pytest.raises(InputError, match=message):
            main(config(**own))
    held = dict(valid={"held": str(tmp_path / "few.jsonl")}, to=str(tmp_path / "held"))
    with pytest.raises(InputError, match=r"--valid held: \d+ tokens are fewer"):
        main(config(**held))


def test_table_by_hand():
    """Three seeds, t of two degrees 4.303: 2.0, 2.1, 2.2 has deviation 0.1 and half an interval of
    0.248; the second corpus is 0.10, 0.12, 0.14 below the first: 0.12 +- 0.050; the third as often
    above as below.
    """
    crawl = dict(documents=1234, tokens=56_789, epochs=0.5, loss={"held": [2.0, 2.1, 2.2]})
    crawl["accuracy"] = {"test.cot": [0.1]}
    mined = crawl | dict(loss={"held": [1.9, 1.98, 2.06]}, accuracy={"test.cot": [0.2]})
    other = crawl | dict(loss={"held": [2.1, 2.1, 2.1]})
    worse = crawl | dict(loss={"held": [2.1, 2.2, 2.3]})
    lines = table({"crawl": crawl, "mined": mined, "other": other, "worse": worse}).splitlines()
    assert lines[1].split() == ["crawl", "1,234", "56,789", "0.50"]
    assert lines[6:8] == [
        "loss per token on held, 3 seeds",
        f"{'crawl':<16} 2.100 (dev. 0.100, 1.852 - 2.348)",
    ]
    assert lines[11] == "mined below crawl: +0.120 (+0.070 to +0.170): yes"
    assert lines[12].endswith(": undecided") and lines[13].endswith(": no")
    assert lines[15] == "accuracy on test.cot, %, 1 seeds" and lines[17].startswith(
        f"{'mined':<16} 20.0"
    )


def test_a_whole_figure(config, runs, tmp_path, monkeypatch, capsys):
    """The same pages as a file and as a folder give the same curves to the last bit, as all else is
    the same for all corpora; the table is that of the runs, a second call runs nothing, and other
    options are refused.
    """
    rows = pages("math", 40)
    for number, own in enumerate((rows[:25], rows[25:])):
        write_jsonl(tmp_path / "folder" / f"part-{number:05d}.jsonl", own)
    write_jsonl(tmp_path / "test.jsonl", [{"id": "1", "question": "2 + 3?", "answer": "5"}])
    corpora = {"mined": str(tmp_path / "math.jsonl"), "again": str(tmp_path / "folder")}
    drawn = {}
    monkeypatch.setattr(figure3, "picture", lambda path, *_: drawn.update({path.name: _[-1]}))
    chosen = config(corpora=corpora, problems=[str(tmp_path / "test.jsonl")])
    main(chosen)
    assert [script for script, _ in runs] == ["train_pretrain.py", "eval.py"] * 2

    found = json.loads((tmp_path / "to" / "figure3.json").read_text())
    x, (curve,) = found["curves"]["held"]["mined"]
    assert found["tokens"] == 5 * 4 * 32 and x == [step * 4 * 32 for step in (2, 4, 5)]
    assert found["curves"]["held"]["again"] == [x, [curve]] and curve[-1] < curve[0]
    row = found["corpora"]["mined"]
    tokens = len(Shards(tmp_path / "to" / "figure3" / "corpora" / "mined"))
    assert (
        row["documents"] == 40
        and row["tokens"] == tokens
        and row["epochs"] == 20 / ((tokens - 1) // 32)
    )
    assert row["loss"] == {"held": [curve[-1]]} and set(row["accuracy"]) == {"test.cot"}
    assert found["corpora"]["again"] == row
    assert drawn["figure3_held.png"].keys() == {
        f"{name} ({row['epochs']:.2f} epochs)" for name in corpora
    }
    text = (tmp_path / "to" / "figure3.txt").read_text()
    assert text in capsys.readouterr().out and text.startswith(
        "640 tokens of training on each corpus"
    )

    main(chosen)
    assert len(runs) == 4 and text in capsys.readouterr().out
    assert (tmp_path / "to" / "figure3.txt").read_text() == text
    with pytest.raises(
        InputError, match="figure3: made with other values of steps; give another --to"
    ):
        main(config(corpora=corpora, problems=chosen.problems, steps=6))
    write_jsonl(tmp_path / "folder" / "part-00002.jsonl", rows[:1])
    with pytest.raises(InputError, match="other values of corpora"):
        main(chosen)
