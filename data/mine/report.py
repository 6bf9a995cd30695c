"""Files that describe a mining run: report.json, report.md, and manifest.json to repeat the run."""

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write, jsonl_files, read_jsonl
from data.mine.ngrams import normalize
from data.mine.recall import EDGES, probability
from data.mine.store import read_json, write_json

VERSION = 1  # of the manifest
PACKAGES = ("numpy", "torch", "fastwarc", "resiliparse")
SHOWN = 20  # rows of a table in report.md; report.json has all rows


# ---- Counts ----------------------------------------------------------------------------------


def by_language(corpus: Iterable[dict]) -> dict[str, dict]:
    """{language: {pages, tokens, characters}}, from the counts of corpus_shard."""
    sums: dict[str, Counter] = {}
    for shard in corpus:
        for name, row in shard["languages"].items():
            sums.setdefault(name or "unknown", Counter()).update(row)
    names = sorted(sums, key=lambda name: (-sums[name]["tokens"], name))
    return {name: dict(sums[name]) for name in names}


def by_source(
    sources: Sequence[str], extracted: Iterable[dict], corpus: Iterable[dict]
) -> dict[str, dict]:
    """{source: {files, crawled, pages, tokens}}: `crawled` pages gave `pages` of the corpus."""
    sums: dict[str, Counter] = {}
    for source, before, after in zip(sources, extracted, corpus, strict=True):
        tokens = sum(row["tokens"] for row in after["languages"].values())
        row = {"files": 1, "crawled": before["pages"], "pages": after["out"], "tokens": tokens}
        sums.setdefault(source, Counter()).update(row)
    return {source: dict(row) for source, row in sums.items()}


# ---- Comparison with the truth about a synthetic web -----------------------------------------


def against_truth(truth_file: str, benchmarks: str, to: Path, rounds: int) -> dict:
    """Compare a run with the truth about its web: rows of {url, kind, copy?, planted?}.

    Returns, with the kind "math" as the positive class:
        math_pages, rounds             precision and recall among the clean pages, for every round
        copies, copies_found           the share of copies that deduplication found
        near_found                     the same for pages that only have near copies
        lost                           pages that are gone together with all their copies
        planted, planted_left          benchmark questions in the web, and those left in the corpus
    """
    truth = {row["url"]: row for _, row in read_jsonl(truth_file)}
    clean = []
    for path in shards(to / "clean"):
        clean += [page["url"] for _, page in read_jsonl(path)]
    unknown = next((url for url in clean if url not in truth), None)
    if unknown:
        raise InputError(
            f"--truth {truth_file}: does not list {unknown}; give the truth about this crawl"
        )
    is_math = np.array([truth[url]["kind"] == "math" for url in clean])
    rows = []
    for number in range(1, rounds + 1):
        kept = np.concatenate([np.load(path) for path in shards(to / f"round_{number}/kept")])
        right = int((kept & is_math).sum())
        rows.append({"precision": right / int(kept.sum()), "recall": right / int(is_math.sum())})
    return {
        "math_pages": int(is_math.sum()),
        "rounds": rows,
        **copies_found(truth, set(clean)),
        "planted": sum(len(row.get("planted", ())) for row in truth.values()),
        "planted_left": planted_left(truth, benchmarks, to),
    }


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*"))


def copies_found(truth: dict[str, dict], clean: set[str]) -> dict:
    """How many copies of pages deduplication found; `clean` are the URLs that it left."""
    # Pages in groups: a page and all its copies.
    groups: dict[str, dict] = {}
    for url, row in truth.items():
        source = url
        while copied := truth[source].get("copy_of"):
            source = copied
        group = groups.setdefault(source, {"kinds": set(), "copies": -1, "kept": 0})
        group["copies"] += 1
        group["kept"] += url in clean
        if "copy" in row:
            group["kinds"].add(row["copy"])

    def share_found(chosen: Sequence[dict]) -> float | None:
        copies = sum(group["copies"] for group in chosen)
        left = sum(max(group["kept"] - 1, 0) for group in chosen)
        return 1 - left / copies if copies else None

    every = list(groups.values())
    near = [group for group in every if group["kinds"] == {"near"}]
    return {
        "copies": sum(group["copies"] for group in every),
        "copies_found": share_found(every),
        "near_found": share_found(near),
        "lost": sum(not group["kept"] for group in every),
    }


def planted_left(truth: dict[str, dict], benchmarks: str, to: Path) -> int:
    """How many planted benchmark questions the corpus still contains."""
    questions = {}
    for path in sorted(Path(benchmarks).glob("*.jsonl")):
        for _, row in read_jsonl(path):
            if "id" in row and "question" in row:
                questions[str(row["id"])] = normalize(row["question"])
    left = 0
    for path in sorted((to / "corpus").glob("part-*.jsonl")):
        for _, page in read_jsonl(path):
            planted = truth[page["url"]].get("planted", ())
            text = normalize(page["text"]) if planted else ""
            left += sum(id in questions and questions[id] in text for id in planted)
    return left


# ---- report.md -------------------------------------------------------------------------------


def percent(part: float, whole: float) -> str:
    """
    >>> percent(1, 8), percent(0, 0)
    ('12.5 %', '-')
    """
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(head: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """The lines of a Markdown table."""

    def line(cells: Iterable) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line("---" for _ in head), *map(line, rows), ""]


def markdown(result: dict) -> str:
    """The text of report.md."""
    sections = (
        summary_lines,
        funnel_lines,
        round_lines,
        corpus_lines,
        benchmark_lines,
        score_lines,
        domain_lines,
    )
    lines = ["# Mined corpus", ""]
    for section in sections:
        lines += section(result)
    return "\n".join(lines)


def summary_lines(result: dict) -> list[str]:
    options, shards = result["options"], result["shards"]
    tokens = sum(row["tokens"] for row in result["languages"].values())
    lines = [
        f"{result['corpus']['out']:,} pages, {tokens:,} tokens (words, CJK characters), from "
        f"{result['pages']['pages']:,} pages of {', '.join(options['crawl'])}.",
        "",
    ]
    if options["annotate"] == "auto":
        lines += [
            "URL prefixes were annotated by a rule, not by a person: "
            "no person has read `annotation.txt`.",
            "",
        ]
    if shards:
        lines += [
            f"`shards/`: {shards['tokens']:,} tokens of tokenizer {shards['tokenizer'][:12]} in "
            f"{len(shards['files'])} files.",
            "",
        ]
    return lines


def funnel_lines(result: dict) -> list[str]:
    """How many pages each step left, and which share it dropped."""
    pages, clean, corpus = result["pages"], result["clean"], result["corpus"]
    collected = result["rounds"][-1]["collected"]
    urls = clean["in"] - clean["url"]
    texts = urls - clean["exact"]
    rows = [
        ("in the crawl files", pages["pages"], ""),
        ("without repeated URLs", urls, percent(clean["url"], clean["in"])),
        ("without repeated texts", texts, percent(clean["exact"], urls)),
        ("without near-duplicates", clean["out"], percent(clean["near"], texts)),
        (
            "collected in the last round",
            collected,
            percent(clean["out"] - collected, clean["out"]),
        ),
        ("without benchmark text", corpus["out"], percent(corpus["dropped"], corpus["in"])),
    ]
    lines = ["## From the crawl to the corpus", ""]
    lines += table(
        ("pages", "", "dropped"), ((name, f"{count:,}", share) for name, count, share in rows)
    )
    others = []
    for name, count in sorted(pages.items()):
        if name not in ("pages", "records") and count:
            others.append((name.replace("_", " "), count))
    if others:
        lines += [f"These of the {pages['records']:,} records of the crawl are not pages:", ""]
        lines += table(("", "records"), others)
    return lines


def round_lines(result: dict) -> list[str]:
    """A table of the rounds, why they stopped, and the comparison with the truth."""
    options, truth = result["options"], result.get("truth")
    head = [
        "round",
        "positives",
        "of them from sites",
        "collected pages",
        "tokens",
        "in the round before",
        "mathematical domains",
        "URL prefixes",
    ]
    head += ["precision", "recall"] if truth else []
    rows = []
    for i, row in enumerate(result["rounds"]):
        before = row["collected_before"]
        cells = [
            row["round"],
            row["positives"],
            row["from_sites"],
            f"{row['collected']:,} of {row['of_pages']:,}",
            f"{row['tokens']:,} of {row['of_tokens']:,}",
            "" if before is None else percent(before, 1),
            f"{row['math_domains']} of {row['domains']}",
            row["annotated"],
        ]
        if truth:
            cells += [f"{truth['rounds'][i][name]:.3f}" for name in ("precision", "recall")]
        rows.append(cells)
    reason = f"the limit of {options['rounds']} rounds"
    if result["stopped"] == "rule":
        share = f"{100 * options['stop']:.0f} %"
        reason = f"the rule: {share} of the last round was already collected in the round before"
    lines = ["## Rounds", "", *table(head, rows), f"The run stopped by {reason}.", ""]

    if truth:
        names = {"copies_found": f"{truth['copies']:,} copies", "near_found": "the near copies"}
        shares = []
        for name, text in names.items():
            if truth[name] is not None:
                shares.append(f"{100 * truth[name]:.1f} % of {text}")
        lines += [
            f"Compared with `{options['truth']}`: deduplication found "
            f"{' and '.join(shares) or 'no copies'}. It lost {truth['lost']} pages together with "
            f"all their copies. Of {truth['planted']} planted benchmark questions, "
            f"{truth['planted_left']} are left.",
            "",
        ]
    return lines


def corpus_lines(result: dict) -> list[str]:
    """The corpus by language and by source."""
    total = sum(row["tokens"] for row in result["languages"].values())
    rows = []
    for name, row in result["languages"].items():
        share = percent(row["tokens"], total)
        rows.append((name, f"{row['pages']:,}", f"{row['tokens']:,}", share))
    lines = ["## Corpus by language and source", ""]
    lines += table(("language", "pages", "tokens", "share"), rows)
    rows = []
    for name, row in result["sources"].items():
        counts = [f"{row[key]:,}" for key in ("crawled", "pages", "tokens")]
        rows.append((f"`{name}`", row["files"], *counts))
    return lines + table(("source", "files", "pages crawled", "pages", "tokens"), rows)


def benchmark_lines(result: dict) -> list[str]:
    """What decontamination found, by benchmark file."""
    corpus, hits = result["corpus"], []
    for name, count in corpus.items():
        if name.startswith("benchmark "):
            hits.append((name.removeprefix("benchmark "), count))
    lines = [
        "## Benchmark text",
        "",
        f"Of {corpus['in']:,} collected pages, {corpus['dropped']:,} were dropped and "
        f"{corpus['cut']:,} lost paragraphs. `corpus/drops` names the page and the benchmark item.",
        "",
    ]
    if hits:
        hits.sort(key=lambda item: (-item[1], item[0]))
        lines += table(("benchmark", "pages with its text"), hits)
    return lines


def score_lines(result: dict) -> list[str]:
    """The histogram of scores in the last round, and the pages nearest to the cutoff."""
    last = result["rounds"][-1]
    cutoff = last["cutoff"]
    lines = [
        f"## Scores of round {last['round']}",
        "",
        f"Pages with a margin, log(p / (1 - p)), of {cutoff:.3f} or more "
        f"(p = {probability(cutoff):.4f}) were collected.",
        "",
        "```",
    ]
    most = max(max(last["histogram"]), 1)
    for low, count in zip(EDGES[:-1].tolist(), last["histogram"], strict=True):
        bar = "#" * round(40 * count / most)
        mark = "<- cut" if low <= cutoff < low + 1 else ""
        lines.append(f"{low:4d} .. {low + 1:3d} {count:9,d} {bar} {mark}".rstrip())
    lines += ["```", ""]
    for name, title in (("kept", "just above"), ("dropped", "just below")):
        lines += [f"Pages {title} the cut:", ""]
        for margin, url, text in last["nearest"][name]:
            lines.append(f"- {margin:.3f} <{url}> {text}")
        lines.append("")
    return lines


def domain_lines(result: dict) -> list[str]:
    """The mathematical domains of the last round."""
    last = result["rounds"][-1]
    share = 100 * result["options"]["domain_share"]
    lines = [
        "## Mathematical domains",
        "",
        f"More than {share:.0f} % of their pages were collected. This table shows the {SHOWN} "
        f"largest of {last['math_domains']}; all are in `round_{last['round']}/domains.txt`.",
        "",
    ]
    rows = []
    for row in last["table"][:SHOWN]:
        paths = []
        for prefix in row["prefixes"][:4]:
            path = prefix["prefix"].partition("/")[2]
            paths.append(f"/{path} {prefix['kept']} of {prefix['total']}")
        kept, total = row["kept"], row["total"]
        rows.append((row["domain"], total, kept, percent(kept, total), ", ".join(paths)))
    return lines + table(("domain", "pages", "collected", "share", "paths"), rows)


def write(to: Path, result: dict) -> None:
    """Write report.json and report.md."""
    write_json(to / "report.json", result)
    with atomic_write(to / "report.md") as file:
        file.write(markdown(result))


# ---- manifest.json ---------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_files(options: dict) -> list[Path]:
    """The files that a run reads besides the crawl."""
    files = [*jsonl_files(options["positives"]), *jsonl_files(options["negatives"])]
    if options["truth"]:
        files.append(Path(options["truth"]))
    below = Path(options["benchmarks"]).rglob("*")
    return files + sorted(path for path in below if path.is_file())


def package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def write_manifest(
    to: Path,
    options: dict,
    crawl: dict[str, str],
    annotations: dict[int, list[str]],
    corpus: dict[str, str],
    tokens: dict | None,
) -> None:
    """Write TO/manifest.json, from which the run can be repeated.

    It holds the options, the URL prefixes after each round (in place of the annotation file), the
    SHA-256 of crawl, inputs, corpus and token shards, and the versions of code and packages.
    """
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    manifest = {
        "version": VERSION,
        "code": hashlib.sha256(code).hexdigest(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "options": {name: value for name, value in options.items() if name != "annotation"},
        "crawl": crawl,
        "annotations": annotations,
        "inputs": {str(path): sha256(path) for path in input_files(options)},
        "corpus": corpus,
        "shards": tokens and {file["name"]: file["sha256"] for file in tokens["files"]},
    }
    write_json(to / "manifest.json", manifest)


def read_manifest(path: Path) -> dict:
    """Read a manifest. Raises InputError if it is not a manifest, or if an input has changed."""
    try:
        manifest = read_json(path)
        missing = {"version", "inputs", "crawl", "corpus", "options", "annotations"} - {*manifest}
        if missing or not isinstance(manifest, dict):
            raise ValueError
    except OSError as error:
        raise InputError(
            f"--repeat {path}: cannot be read ({error.strerror}); give the manifest.json of a run"
        ) from None
    except (ValueError, TypeError):
        raise InputError(
            f"--repeat {path}: not the manifest of a mined corpus; give the manifest.json of a run"
        ) from None
    if manifest["version"] != VERSION:
        raise InputError(
            f"--repeat {path}: the manifest has version {manifest['version']}, this code writes "
            f"{VERSION}; repeat the run with the code that wrote the manifest"
        )
    for name, digest in manifest["inputs"].items():
        if not Path(name).is_file():
            raise InputError(f"--repeat {path}: input {name} does not exist any more; restore it")
        if sha256(Path(name)) != digest:
            raise InputError(f"--repeat {path}: input {name} has changed; restore the old version")
    return manifest


def different(before: dict, after: dict) -> list[str]:
    """The names with different values, in order.

    >>> different({"a": 1, "b": 2}, {"b": 3, "a": 1, "c": 4})
    ['b', 'c']
    """
    return sorted(name for name in before | after if before.get(name) != after.get(name))


def compare_crawl(old: Path, crawl: dict[str, str]) -> dict:
    """Return the manifest `old`. Raises InputError if the crawl files are not those it names."""
    manifest = read_manifest(old)
    changed = different(manifest["crawl"], crawl)
    if changed:
        raise InputError(
            f"--repeat {old}: crawl file {changed[0]} differs from the file of that run; "
            "restore the old version"
        )
    return manifest


def compare(old: Path, new: Path) -> None:
    """Raise InputError if the corpus of a repeated run differs from the first one."""
    before, after = read_json(old), read_json(new)
    changed = different(before["corpus"], after["corpus"])
    if changed:
        causes = []
        for name in ("code", "python", "packages"):
            if before[name] != after[name]:
                causes.append(f"{name} {before[name]} -> {after[name]}")
        raise InputError(
            f"--repeat {old}: corpus/{changed[0]} and {len(changed) - 1} more files differ "
            f"({'; '.join(causes) or 'with the same code and packages'})"
        )
