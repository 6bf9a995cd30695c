"""The data engine: the exact cutoff, the steps, and a small web that is mined as a whole.

The web is mined with one worker and with several, killed, on a Dask cluster, and repeated.
"""

import io
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from runtime.options import to_toml

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.io import InputError, read_jsonl, write_jsonl
from data.mine import __main__ as commands
from data.mine import domains, loop, recall, report, steps, store
from data.mine.pages import read_pages
from data.mine.run import executor
from data.shards import Shards
from data.tokenizer import Tokenizer
from data.train_tokenizer import train
from data.world import web as synthetic_web

ROOT = Path(__file__).parents[3]
PAGES, FILES = 480, 6


# ---- recall.py -------------------------------------------------------------------------------

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(floats, min_size=2))
def test_keys_are_in_the_order_of_the_margins(values):
    margins = np.array(values, np.float32) + np.float32(0)
    keys = recall.margin_keys(margins).astype(np.int64)
    assert (np.sign(np.diff(keys)) == np.sign(np.diff(margins.astype(np.float64)))).all()
    assert [recall.key_margin(int(key)) for key in keys] == margins.tolist()


def cut(margins, tokens, limit, folder) -> float:
    """recall.cutoff over two shards."""
    paths = []
    for i in (0, 1):
        scores = np.zeros(len(margins[i::2]), recall.SCORES)
        scores["margin"], scores["tokens"] = margins[i::2], tokens[i::2]
        paths.append(folder / f"{i}.npy")
        store.save_array(paths[-1], scores)

    def bins(upper):
        for i, path in enumerate(paths):
            recall.tokens_by_key(path, upper, folder / f"bins{i}.npy")
        return recall.sum_bins(folder / f"bins{i}.npy" for i in (0, 1))

    return recall.cutoff(bins(None), bins, limit)


# A few values, some with the same upper 16 bits: so there are ties, and both passes are needed.
close = st.sampled_from(
    [1.0, 1.0 + 2**-20, 1.0 + 2**-15, 2.0, -1.0, -1.0 - 2**-20, 0.0, 17.5, -3e-39]
)


pages = st.lists(st.tuples(floats | close, st.integers(1, 50)), min_size=1, max_size=40)


@given(pages=pages, limit=st.integers(1, 900))
def test_the_cut_keeps_as_many_tokens_as_fit(pages, limit, tmp_path_factory):
    """Against sorting. Pages with the same score are collected together or not at all."""
    margins = np.array([margin for margin, _ in pages], np.float32) + np.float32(0)
    tokens = np.array([count for _, count in pages])
    by_score = Counter()
    for margin, count in zip(margins.tolist(), tokens.tolist(), strict=True):
        by_score[margin] += count
    taken, kept = 0, set()
    for margin in sorted(by_score, reverse=True):
        if taken + by_score[margin] > limit:
            break
        taken += by_score[margin]
        kept.add(margin)
    folder = tmp_path_factory.mktemp("cut")
    if len(kept) == len(by_score):
        with pytest.raises(
            InputError,
            match=f"--keep_tokens {limit}: the pages have {taken} tokens, so all would be",
        ):
            cut(margins, tokens, limit, folder)
    elif not kept:
        with pytest.raises(
            InputError,
            match=f"--keep_tokens {limit}: the best page alone has more tokens",
        ):
            cut(margins, tokens, limit, folder)
    else:
        least = np.float32(cut(margins, tokens, limit, folder))
        assert set(margins[margins >= least].tolist()) == kept


def test_collect_shard(tmp_path):
    rows = [{"url": f"u{i}", "text": f"text \n {i}"} for i in range(6)]
    write_jsonl(tmp_path / "part.jsonl", rows)
    scores = np.zeros(6, recall.SCORES)
    scores["margin"], scores["tokens"] = [3, -2, 0.5, 1, 4, -1], [1, 2, 4, 8, 16, 32]
    store.save_array(tmp_path / "scores.npy", scores)
    np.save(tmp_path / "before.npy", np.array([True, True, False, True, False, False]))
    files = (
        tmp_path / "part.jsonl",
        tmp_path / "scores.npy",
        0.5,
        tmp_path / "before.npy",
        tmp_path / "kept.npy",
    )
    counts = recall.collect_shard(*files)
    assert np.load(tmp_path / "kept.npy").tolist() == [True, False, True, True, True, False]
    near = counts.pop("nearest")
    assert counts == {"pages": 6, "collected": 4, "again": 2, "tokens": 29}
    assert near == {
        "kept": [[3, "u0", "text 0"], [0.5, "u2", "text 2"], [1, "u3", "text 3"]],
        "dropped": [[-2, "u1", "text 1"], [-1, "u5", "text 5"]],
    }
    other = {"nearest": {"kept": [[0.75, "v", ""]], "dropped": [[0.25, "w", ""], [-9, "x", ""]]}}
    assert recall.nearest([{"nearest": near}, other], 0.5) == {
        "kept": [[0.5, "u2", "text 2"], [0.75, "v", ""], [1, "u3", "text 3"]],
        "dropped": [[0.25, "w", ""], [-1, "u5", "text 5"], [-2, "u1", "text 1"]],
    }


# ---- steps.py --------------------------------------------------------------------------------


def test_examples_of_a_round(tmp_path):
    """Annotated but not collected: positives, in all later rounds. Neither: negatives."""
    urls = [
        "http://a.example/math/1",
        "http://a.example/math/2",
        "http://a.example/news/3",
        "http://b.example/4",
        "http://b.example/5",
        "http://c.example/6",
    ]
    shard = tmp_path / "part-00000.jsonl"
    write_jsonl(shard, ({"url": url, "text": url[-1]} for url in urls))
    np.save(tmp_path / "kept.npy", np.array([True, False, False, True, False, False]))
    np.save(tmp_path / "added.npy", np.array([False, False, False, True, False, True]))
    domains.write_annotations(tmp_path / "annotation.txt", ["a.example/math"], "")
    target = tmp_path / "examples.npy"
    args = (
        shard,
        tmp_path / "kept.npy",
        tmp_path / "added.npy",
        tmp_path / "annotation.txt",
        1.0,
        0,
        target,
    )

    def texts(kind):
        return "".join(row["text"] for _, row in read_jsonl(target.with_suffix(f".{kind}.jsonl")))

    assert steps.sample_shard(*args) == {"positives": 3, "negatives": 2}
    assert (texts("positives"), texts("negatives")) == ("246", "35")
    assert np.load(target).tolist() == [False, True, False, True, False, True]
    assert steps.sample_shard(shard, None, None, None, 1.0, 0, target) == {
        "positives": 0,
        "negatives": 6,
    }
    assert texts("negatives") == "123456"
    write_jsonl(shard, ({"url": f"u{i}", "text": ""} for i in range(4000)))
    drawn = [
        steps.sample_shard(shard, None, None, None, 0.25, seed, target)["negatives"]
        for seed in (0, 1, 0)
    ]
    assert drawn[0] == drawn[2] != drawn[1] and all(900 < count < 1100 for count in drawn)


def test_sample_texts(tmp_path):
    for i in (0, 1):
        write_jsonl(tmp_path / f"{i}.jsonl", ({"text": f"{i} {j}"} for j in range(50)))
    paths = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    few = loop.sample_texts(paths, 20, 7, "--positives x")
    assert len(set(few)) == 20 and few == loop.sample_texts(paths[::-1], 20, 7, "")
    assert few == loop.sample_texts(paths, 100, 7, "")[:20] and few != loop.sample_texts(
        paths, 20, 8, ""
    )
    every = [f"0 {j}" for j in range(50)] + [f"1 {j}" for j in range(50)]
    assert sorted(loop.sample_texts(paths, 1000, 7, "")) == sorted(every)
    write_jsonl(paths[0], [])
    with pytest.raises(InputError, match="--positives x: no text"):
        loop.sample_texts(paths[:1], 5, 0, "--positives x")
    write_jsonl(paths[0], [{"text": "a"}, {"page": "b"}])
    with pytest.raises(InputError, match=re.escape(f"{paths[0]}:2: no text")):
        loop.sample_texts(paths, 5, 0, "")


def test_partitioned_domains_are_all_domains(tmp_path):
    draw = random.Random(0)
    tables, pages = [], []
    for i in range(3):
        rows = [
            (f"http://d{draw.randrange(40)}.example/{draw.random()}", draw.random() < 0.2)
            for _ in range(200)
        ]
        pages += rows
        shard, kept = tmp_path / f"{i}.jsonl", tmp_path / f"{i}.npy"
        write_jsonl(shard, ({"url": url, "text": ""} for url, _ in rows))
        np.save(kept, np.array([one for _, one in rows]))
        tables.append(tmp_path / f"{i}.domains.jsonl")
        steps.domains_shard(shard, kept, 4, tables[-1])
    counts = [
        steps.domains_part(tables, part, 0.2, 5, tmp_path / f"{part}.json") for part in range(4)
    ]
    whole = domains.domain_counts(pages)
    found = {}
    for part in range(4):
        found |= store.read_json(tmp_path / f"{part}.json")
    assert found == {name: whole[name] for name in domains.math_domains(whole, 0.2, 5)} and found
    assert sum(one["domains"] for one in counts) == len(whole) == 40
    assert all(one["domains"] < 20 for one in counts)


# ---- The whole -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Path:
    """A web in English and Chinese, in six files, and a tokenizer."""
    folder = tmp_path_factory.mktemp("web")
    made = synthetic_web.Web(domains=40, seed=3, levels=[1, 2], benchmark=12)
    pages = [made.page(i) for i in range(PAGES)]
    for i in range(FILES):
        (folder / "crawl").mkdir(exist_ok=True)
        (folder / "crawl" / f"{i}.warc.gz").write_bytes(
            b"".join(map(synthetic_web.page_record, pages[i::FILES]))
        )
    write_jsonl(folder / "truth.jsonl", (page.truth() for page in pages))
    write_jsonl(folder / "seed.jsonl", made.seed_pages(100, positive=True))
    for name, rows in made.benchmark.items():
        write_jsonl(folder / "benchmark" / f"{name}.jsonl", rows)
    train((page.text for page in pages[:100]), 300, ["<|endoftext|>"]).save(folder / "tokenizer")
    return folder


def pages_of(folder: Path, pattern: str = "*.jsonl") -> list[dict]:
    """The rows of the JSONL files in a folder, in the order of their names."""
    rows = []
    for path in sorted(folder.glob(pattern)):
        rows += [row for _, row in read_jsonl(path)]
    return rows


def config(web: Path, to: Path, **options) -> loop.Config:
    chosen = dict(
        crawl=[str(web / "crawl")],
        positives=[str(web / "seed.jsonl")],
        benchmarks=str(web / "benchmark"),
        truth=str(web / "truth.jsonl"),
        tokenizer=str(web / "tokenizer"),
        to=str(to),
        annotate="auto",
        keep_tokens=[12_000, 30_000, 50_000],
        domain_pages=3,
        width=16,
        buckets=4096,
        rate=0.5,
        epochs=5,
        contaminated="paragraph",
        rounds=6,
        stop=0.96,
        partitions=2,
        workers=1,
    )
    return loop.Config(**(chosen | options))


def mined(config: loop.Config) -> Path:
    loop.check_config(config)
    with executor(config.executor, config.workers) as map:
        loop.mine(config, map)
    return Path(config.to)


@pytest.fixture(scope="module")
def whole(web, tmp_path_factory) -> Path:
    return mined(config(web, tmp_path_factory.mktemp("whole") / "run", round_corpora=True))


def result(to: Path) -> dict[str, bytes]:
    """The files of a run that must always be the same."""
    files = [
        *to.glob("corpus/**/*.jsonl"),
        *to.glob("shards/*"),
        *to.glob("round_*/kept/*"),
        to / "report.md",
        to / "annotation.txt",
    ]
    return {str(path.relative_to(to)): path.read_bytes() for path in files}


def test_a_web_is_mined(web, whole):
    found = json.loads((whole / "report.json").read_text())
    truth = found["truth"]
    assert found["pages"]["pages"] == PAGES and found["clean"]["in"] == PAGES
    rows = truth["rounds"]
    assert len(rows) == len(found["rounds"]) >= 3
    assert rows[0]["recall"] < rows[1]["recall"] < rows[2]["recall"] and rows[-1]["recall"] > 0.7
    assert all(row["precision"] > 0.7 for row in rows)
    assert truth["near_found"] >= 0.95 and truth["copies_found"] >= 0.95 and truth["copies"] > 40
    assert truth["lost"] == 0 and truth["planted"] > 5 and truth["planted_left"] == 0
    # The report counts the pages of the corpus.
    corpus = pages_of(whole / "corpus")
    assert (
        len(corpus)
        == found["corpus"]["out"]
        == sum(row["pages"] for row in found["languages"].values())
    )
    assert found["languages"]["en"]["pages"] == sum(page["lang"] == "en" for page in corpus)
    assert found["sources"] == {
        str(web / "crawl"): {
            "files": FILES,
            "crawled": PAGES,
            "pages": len(corpus),
            "tokens": sum(row["tokens"] for row in found["languages"].values()),
        }
    }
    for row, limit in zip(found["rounds"], [12_000, 30_000, *[50_000] * 4], strict=False):
        assert 0.9 * limit < row["tokens"] <= limit
        assert sum(row["histogram"]) == row["of_pages"] == found["clean"]["out"]
        assert row["positives"] == 100 + row["from_sites"]
    assert found["stopped"] == "rule" and found["rounds"][-1]["collected_before"] >= 0.96
    assert all(row["collected_before"] < 0.96 for row in found["rounds"][1:-1])
    again = [found["rounds"][i]["collected_before"] for i in (1, 2)]
    kept = [
        np.concatenate([np.load(path) for path in sorted(whole.glob(f"round_{k}/kept/*.npy"))])
        for k in (1, 2, 3)
    ]
    assert again == [(kept[i] & kept[i + 1]).sum() / kept[i + 1].sum() for i in (0, 1)]
    # The token shards contain the corpus, in order.
    tokenizer, shards = Tokenizer.load(web / "tokenizer"), Shards(whole / "shards", verify=True)
    ids = []
    for page in corpus:
        ids += [*tokenizer.encode(page["text"]), tokenizer.eos_id]
    assert shards.read(0, len(shards)).tolist() == ids and found["shards"]["documents"] == len(
        corpus
    )
    # Every round has a corpus, and the last one is the corpus.
    last = f"round_{len(rows)}"
    assert [p.read_bytes() for p in sorted((whole / last / "corpus").glob("*.jsonl"))] == [
        p.read_bytes() for p in sorted((whole / "corpus").glob("*.jsonl"))
    ]
    text = (whole / "report.md").read_text()
    for part in (
        f"{len(corpus):,} pages",
        "annotated by a rule, not by a person",
        "<- cut",
        "Pages just below the cut",
        "english.jsonl",
        "0 are left",
        f"{truth['rounds'][0]['recall']:.3f}",
    ):
        assert part in text


def test_workers_partitions_and_a_late_tokenizer_change_nothing(web, whole, tmp_path):
    options = dict(workers=3, partitions=3, tokenizer="")
    to = mined(config(web, tmp_path / "run", **options))
    assert not (to / "shards").exists()
    mined(config(web, to, **(options | {"tokenizer": str(web / "tokenizer")})))
    assert result(to) == result(whole)


def run_child(options: dict, output: str) -> None:
    """A run, for another process."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        mined(loop.Config(**options))


def test_killed_ten_times(web, whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.mine.loop", "torch", __name__])
    chosen = asdict(config(web, tmp_path / "run"))

    def start():
        process = context.Process(target=run_child, args=(chosen, str(tmp_path / "output")))
        process.start()
        return process

    def markers() -> int:
        return len(list(tmp_path.glob("run/**/done/*.json")))

    draw, killed, total = random.Random(0), [], len(list(whole.glob("**/done/*.json")))
    for _ in range(10):
        until = markers() + draw.randint(1, total // 11)
        process = start()
        while markers() < until:
            assert process.is_alive(), (tmp_path / "output").read_text()
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed.append(markers())
    assert killed == sorted(killed)  # every run continued
    process = start()
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    assert result(tmp_path / "run") == result(whole)
    assert not list(tmp_path.glob("run/**/*.tmp"))


def test_on_a_dask_cluster(web, whole, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address.removeprefix("tcp://")
        assert result(mined(config(web, tmp_path / "run", executor=f"dask://{address}"))) == result(
            whole
        )


def test_prefixes_by_hand_and_one_round_after_the_other(web, tmp_path, monkeypatch):
    """--annotate ask, and --annotate file with the same answers, give the same corpus.

    With "file", a person runs a round, annotates, and runs the next round in the same folder.
    """
    asked = tmp_path / "asked"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\nn\n" * 200))
    mined(config(web, asked, annotate="ask", rounds=2))
    chosen = domains.read_annotations(asked / "round_1" / "annotation.txt")
    assert chosen and json.loads((asked / "report.json").read_text())["rounds"][1]["from_sites"] > 0
    by_hand = tmp_path / "by_hand"
    mined(config(web, by_hand, annotate="file", rounds=1))
    (by_hand / "annotation.txt").write_text("# mine\n" + "\n".join(chosen))
    mined(config(web, by_hand, annotate="file", rounds=2))
    kept = [sorted((to / "round_2" / "kept").iterdir()) for to in (asked, by_hand)]
    assert [path.read_bytes() for path in kept[0]] == [path.read_bytes() for path in kept[1]]
    corpus = [
        sorted(to.glob("corpus/*.jsonl")) + sorted(to.glob("shards/*")) for to in (asked, by_hand)
    ]
    assert [path.read_bytes() for path in corpus[0]] == [path.read_bytes() for path in corpus[1]]
    (by_hand / "annotation.txt").write_text("other.example\n")  # too late
    mined(config(web, by_hand, annotate="file", rounds=2))
    found = json.loads((by_hand / "manifest.json").read_text())
    assert found["annotations"] == {"1": chosen} and found["options"]["rounds"] == 2


def test_repeat(web, whole, tmp_path):
    """A run is repeated from its manifest. An error names what has changed."""
    words = [
        sys.executable,
        "-m",
        "data.mine",
        "--repeat",
        str(whole / "manifest.json"),
        "--workers",
        "1",
    ]

    def repeat(to: str) -> tuple[int, str]:
        done = subprocess.run(
            [*words, "--to", str(tmp_path / to)], cwd=ROOT, capture_output=True, text=True
        )
        return done.returncode, done.stderr

    assert repeat("again") == (0, "")
    for path in sorted((whole / "corpus").glob("*.jsonl")):
        assert (tmp_path / "again" / "corpus" / path.name).read_bytes() == path.read_bytes()
    seed, crawl = web / "seed.jsonl", web / "crawl" / "5.warc.gz"
    for path, message in (
        (seed, f"input {seed} has changed"),
        (crawl, f"crawl file {crawl} differs"),
    ):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        try:
            code, error = repeat(f"{path.stem}")
        finally:
            path.write_bytes(before)
        assert code == 2 and message in error and error.count("\n") == 1
    broken = json.loads((whole / "manifest.json").read_text())
    broken["corpus"]["part-00002.jsonl"] = "0"
    (tmp_path / "old.json").write_text(json.dumps(broken))
    with pytest.raises(
        InputError, match=r"corpus/part-00002.jsonl and 0 more files differ \(with the same"
    ):
        report.compare(tmp_path / "old.json", tmp_path / "again" / "manifest.json")
    broken["version"] = 0
    (tmp_path / "old.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match="has version 0, this code writes 1"):
        report.read_manifest(tmp_path / "old.json")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(positives=[]), "--positives is needed"),
        (dict(positives=["{to}/none.jsonl"]), "--positives .*none.jsonl: does not exist"),
        (dict(positives=["{to}/empty.jsonl"]), "--positives .*empty.jsonl: no text"),
        (dict(benchmarks="{to}/nowhere"), "nowhere"),
        (dict(crawl=["{to}/nowhere"]), "--crawl .*nowhere: does not exist"),
        (dict(crawl=["{to}/empty.jsonl"]), "--crawl: no page in 1 files"),
        (
            dict(keep_tokens=[10**9]),
            "--keep_tokens 1000000000: the pages have .* so all would be collected",
        ),
        (dict(keep_tokens=[3]), "--keep_tokens 3: the best page alone"),
        (dict(keep_tokens=[0]), "--keep_tokens 0: out of range; give an integer at least 1"),
        (dict(annotate="nobody"), "--annotate nobody: unknown; choose file, ask or auto"),
        (dict(contaminated="line"), "--contaminated line: unknown; choose page or paragraph"),
        (dict(stop=1.5), "--stop 1.5: out of range; give a finite number above 0 and at most 1"),
        (dict(workers=0), "--workers 0: out of range"),
        (dict(truth="{to}/none"), "--truth .*none: does not exist"),
        (dict(executor="slurm"), "--executor slurm: unknown; give processes or dask://HOST:PORT"),
        (
            dict(executor="dask://127.0.0.1:9"),
            "--executor dask://127.0.0.1:9: no scheduler answers there",
        ),
    ],
)
def test_bad_input(web, tmp_path, changes, message):
    (tmp_path / "empty.jsonl").write_text("")

    def fill(value):
        return (
            [fill(one) for one in value]
            if isinstance(value, list)
            else (value.format(to=tmp_path) if isinstance(value, str) else value)
        )

    options = {name: fill(value) for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        mined(config(web, tmp_path / "run", **options))


def test_every_page_holds_benchmark_text(web, tmp_path):
    pages = []
    for path in sorted((web / "crawl").iterdir()):
        pages += read_pages(path, Counter())
    write_jsonl(
        tmp_path / "bench" / "all.jsonl",
        ({"question": page["text"], "answer": "1"} for page in pages),
    )
    with pytest.raises(
        InputError, match="--benchmarks .*bench: every page contains benchmark text"
    ):
        mined(
            config(
                web,
                tmp_path / "run",
                benchmarks=str(tmp_path / "bench"),
                contaminated="page",
                rounds=1,
            )
        )


def test_another_run_in_the_folder(web, whole):
    with pytest.raises(InputError, match="contains a run with other options or files"):
        mined(replace(config(web, whole, round_corpora=True), seed=1))


def test_disk_full(web, tmp_path):
    """A limit on file size simulates a full disk. The error names the step; the run continues."""
    (tmp_path / "run.toml").write_text(
        to_toml(replace(config(web, tmp_path / "run", rounds=1), repeat=""))
    )
    words = [sys.executable, "-m", "data.mine", "--config", str(tmp_path / "run.toml")]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(
        r"error: .*/done/\S+.json: step stopped: File too large.*run the same command again",
        done.stderr,
    )
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "run" / "report.md").exists()


def test_steps_alone(web, whole, tmp_path, monkeypatch, capsys):
    """The command of a step does what the loop does."""

    def step(name: str, **options) -> str:
        words = [f"--{option}={value}" for option, value in options.items()]
        monkeypatch.setattr(sys, "argv", ["data.mine", name, *words])
        commands.main()
        return capsys.readouterr().out

    # Pages and deduplication
    out = step("pages", crawl=web / "crawl", to=tmp_path / "pages")
    assert f"{PAGES // FILES} pages" in out
    out = step("dedup", store=tmp_path / "pages", to=tmp_path / "clean", work=tmp_path / "work")
    clean = sorted((whole / "clean").glob("*.jsonl"))
    for path in clean:
        assert path.read_bytes() == (tmp_path / "clean" / path.name).read_bytes()
    left = len(pages_of(whole / "clean"))
    assert f"{PAGES} pages" in out and f"{left} left" in out

    # Classifier and scores
    negatives = pages_of(whole / "round_1" / "examples", "*.negatives.jsonl")
    write_jsonl(tmp_path / "negatives.jsonl", negatives)
    out = step(
        "train",
        positives=web / "seed.jsonl",
        negatives=tmp_path / "negatives.jsonl",
        to=tmp_path / "model.npz",
        width=16,
        buckets=4096,
        rate=0.5,
        epochs=5,
    )
    assert re.search(r"100 positives and \d+ negatives; (9\d|100)\.\d % of them", out), out
    out = step(
        "score",
        model=whole / "round_1" / "classifier.npz",
        store=whole / "clean",
        to=tmp_path / "scores.jsonl",
        explain=3,
    )
    rows = [row for _, row in read_jsonl(tmp_path / "scores.jsonl")]
    assert f"{left} pages" in out and len(rows) == left
    assert all(len(row["why"]) == 3 for row in rows)
    scores = sorted(whole.glob("round_1/scores/part-?????.npy"))
    margins = np.concatenate([np.load(path)["margin"] for path in scores])
    assert [row["margin"] for row in rows] == sorted(margins.tolist(), reverse=True)

    # Domains and decontamination
    table = step("domains", run=whole, round=2, pages=3)
    assert table.strip() == (whole / "round_2" / "domains.txt").read_text().strip() != ""
    step(
        "decontaminate",
        store=whole / "clean",
        benchmarks=web / "benchmark",
        to=tmp_path / "decon",
        contaminated="paragraph",
    )
    pages = {page["url"]: page for page in pages_of(tmp_path / "decon")}
    corpus = pages_of(whole / "corpus")
    assert corpus == [pages[page["url"]] for page in corpus] and len(pages) > len(corpus)


@pytest.mark.parametrize(
    "words, message",
    [
        ("score", "--model is needed"),
        ("sort", "sort: no such step; the steps are pages, dedup"),
        ("dedup --store {to} --to x", "no shards part-00000.jsonl"),
        ("domains --run {run} --round 9", "has no collection yet"),
    ],
)
def test_bad_steps(whole, tmp_path, monkeypatch, words, message):
    words = words.format(to=tmp_path, run=whole)
    monkeypatch.setattr(sys, "argv", ["data.mine", *words.split()])
    with pytest.raises(InputError, match=message):
        commands.main()
