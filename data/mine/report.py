"""What a run of the data engine leaves to be read: report.json, report.md, and manifest.json to repeat it from."""

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.io import InputError, atomic_write, jsonl_files, read_jsonl
from data.mine.ngrams import normalize
from data.mine.recall import EDGES, probability

VERSION = 1  # of the manifest
PACKAGES = ("numpy", "torch", "fastwarc", "resiliparse")
SHOWN = 20  # rows of a table of report.md; report.json has all


# ---- Tables ----------------------------------------------------------------------------------------------------------


def by_language(corpus: Iterable[dict]) -> dict[str, dict]:
    """{language: {pages, tokens, characters}} of the counts of corpus_shard."""
    found: dict[str, Counter] = {}
    for one in corpus:
        for name, row in one["languages"].items():
            found.setdefault(name or "unknown", Counter()).update(row)
    return {
        name: dict(row)
        for name, row in sorted(found.items(), key=lambda item: (-item[1]["tokens"], item[0]))
    }


def by_source(
    sources: Sequence[str], extracted: Iterable[dict], corpus: Iterable[dict]
) -> dict[str, dict]:
    """{source: {files, crawled, pages, tokens}}: the pages in its files, and those of the corpus and their tokens."""
    found: dict[str, Counter] = {}
    for source, before, after in zip(sources, extracted, corpus, strict=True):
        tokens = sum(row["tokens"] for row in after["languages"].values())
        row = {"files": 1, "crawled": before["pages"], "pages": after["out"], "tokens": tokens}
        found.setdefault(source, Counter()).update(row)
    return {source: dict(row) for source, row in found.items()}


def against_truth(truth: str, benchmarks: str, to: Path, rounds: int) -> dict:
    """How the run stands to the truth about a web, {url, kind, copy?, planted?} a line: precision and recall of the
    kind "math" among the clean pages each round; the share of copies that deduplication found, of all and of the pages
    that have near copies only, and how many pages are lost with all their copies; planted benchmark questions whose
    text is still in the corpus."""
    known = {row["url"]: row for _, row in read_jsonl(truth)}

    def column(folder: str) -> list[Path]:
        return sorted((to / folder).glob("part-*"))

    def urls(folder: str) -> list[str]:
        return [row["url"] for path in column(folder) for _, row in read_jsonl(path)]

    clean = urls("clean")
    if missing := next((url for url in clean if url not in known), None):
        raise InputError(
            f"--truth {truth}: says nothing of {missing}; give the truth about this crawl"
        )
    math = np.array([known[url]["kind"] == "math" for url in clean])
    rows = []
    for number in range(1, rounds + 1):
        kept = np.concatenate([np.load(path) for path in column(f"round_{number}/kept")])
        right = int((kept & math).sum())
        rows.append({"precision": right / int(kept.sum()), "recall": right / int(math.sum())})
    left, groups = set(clean), {}
    for url, row in known.items():
        source = url
        while copied := known[source].get("copy_of"):
            source = copied
        group = groups.setdefault(source, {"kinds": set(), "copies": -1, "kept": 0})
        group["copies"] += 1
        group["kept"] += url in left
        group["kinds"] |= {row["copy"]} if "copy" in row else set()

    def found_of(chosen: list[dict]) -> float | None:
        copies = sum(group["copies"] for group in chosen)
        return 1 - sum(max(group["kept"] - 1, 0) for group in chosen) / copies if copies else None

    copies = {
        "copies": sum(group["copies"] for group in groups.values()),
        "copies_found": found_of([*groups.values()]),
        "near_found": found_of([group for group in groups.values() if group["kinds"] == {"near"}]),
        "lost": sum(not group["kept"] for group in groups.values()),
    }
    questions = {
        str(row["id"]): normalize(row["question"])
        for path in sorted(Path(benchmarks).glob("*.jsonl"))
        for _, row in read_jsonl(path)
        if "id" in row and "question" in row
    }
    remaining = 0
    for path in column("corpus"):
        for _, page in read_jsonl(path) if path.suffix == ".jsonl" else ():
            if ids := known[page["url"]].get("planted"):
                text = normalize(page["text"])
                remaining += sum(questions[one] in text for one in ids if one in questions)
    planted = sum(len(row.get("planted", ())) for row in known.values())
    return {
        "math_pages": int(math.sum()),
        "rounds": rows,
        **copies,
        "planted": planted,
        "planted_left": remaining,
    }


# ---- report.md -------------------------------------------------------------------------------------------------------


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(head: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """Lines of a Markdown table."""

    def line(cells: Iterable) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line("---" for _ in head), *map(line, rows), ""]


def markdown(found: dict) -> str:
    options, pages, clean, corpus, rounds = (
        found[name] for name in ("options", "pages", "clean", "corpus", "rounds")
    )
    last = rounds[-1]
    tokens = sum(row["tokens"] for row in found["languages"].values())
    lines = [
        "# Mined corpus",
        "",
        f"{corpus['out']:,} pages, {tokens:,} tokens (words, CJK characters), from "
        f"{pages['pages']:,} pages of {', '.join(options['crawl'])}.",
        "",
    ]
    if options["annotate"] == "auto":
        lines += [
            "URL prefixes were annotated by a rule, not by a person: `annotation.txt` is unread.",
            "",
        ]
    if found["shards"]:
        shards = found["shards"]
        lines += [
            f"`shards/`: {shards['tokens']:,} tokens of tokenizer {shards['tokenizer'][:12]} in "
            f"{len(shards['files'])} files.",
            "",
        ]

    lines += ["## From the crawl to the corpus", ""]
    rows = [
        ("in the crawl files", pages["pages"], ""),
        ("without repeated URLs", clean["in"] - clean["url"], percent(clean["url"], clean["in"])),
        (
            "without repeated texts",
            clean["in"] - clean["url"] - clean["exact"],
            percent(clean["exact"], clean["in"] - clean["url"]),
        ),
        (
            "without near-duplicates",
            clean["out"],
            percent(clean["near"], clean["out"] + clean["near"]),
        ),
        (
            "collected in the last round",
            last["collected"],
            percent(clean["out"] - last["collected"], clean["out"]),
        ),
        ("without benchmark text", corpus["out"], percent(corpus["dropped"], corpus["in"])),
    ]
    lines += table(
        ("pages", "", "dropped"), ((name, f"{count:,}", share) for name, count, share in rows)
    )
    others = {
        name.replace("_", " "): count
        for name, count in sorted(pages.items())
        if name not in ("pages", "records") and count
    }
    if others:
        lines += [f"Of {pages['records']:,} records of the crawl files these are no page:", ""]
        lines += table(("", "records"), others.items())

    lines += ["## Rounds", ""]
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
    truth = found.get("truth")
    head += ["precision", "recall"] if truth else []
    rows = []
    for i, row in enumerate(rounds):
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
        cells += (
            [f"{truth['rounds'][i][name]:.3f}" for name in ("precision", "recall")] if truth else []
        )
        rows.append(cells)
    lines += table(head, rows)
    limit = f"the limit of {options['rounds']} rounds"
    rule = f"the rule: {100 * options['stop']:.0f} % of what a round collects was collected in the round before"
    lines += [f"It stopped by {rule if found['stopped'] == 'rule' else limit}.", ""]
    if truth:
        what = {"copies_found": f"{truth['copies']:,} copies", "near_found": "the near copies"}
        shares = [
            f"{100 * truth[name]:.1f} % of {text}"
            for name, text in what.items()
            if truth[name] is not None
        ]
        lines += [
            f"Against `{options['truth']}`: deduplication found {' and '.join(shares) or 'no copies'}, and lost "
            f"{truth['lost']} pages with all their copies; of {truth['planted']} planted benchmark questions "
            f"{truth['planted_left']} are left.",
            "",
        ]

    lines += ["## Corpus by language and source", ""]
    lines += table(
        ("language", "pages", "tokens", "share"),
        (
            (name, f"{row['pages']:,}", f"{row['tokens']:,}", percent(row["tokens"], tokens))
            for name, row in found["languages"].items()
        ),
    )
    lines += table(
        ("source", "files", "pages crawled", "pages", "tokens"),
        (
            (
                f"`{name}`",
                row["files"],
                f"{row['crawled']:,}",
                f"{row['pages']:,}",
                f"{row['tokens']:,}",
            )
            for name, row in found["sources"].items()
        ),
    )

    lines += ["## Benchmark text", ""]
    hits = {
        name.removeprefix("benchmark "): count
        for name, count in corpus.items()
        if name.startswith("benchmark ")
    }
    lines += [
        f"Of {corpus['in']:,} collected pages {corpus['dropped']:,} were dropped and {corpus['cut']:,} lost "
        "paragraphs; `corpus/drops` names page and benchmark item.",
        "",
    ]
    if hits:
        lines += table(
            ("benchmark", "pages with its text"),
            sorted(hits.items(), key=lambda item: (-item[1], item[0])),
        )

    lines += [
        f"## Scores of round {last['round']}",
        "",
        f"Pages with a margin, log(p / (1 - p)), of {last['cutoff']:.3f} and above "
        f"(p = {probability(last['cutoff']):.4f}) were collected.",
        "",
        "```",
    ]
    most = max(max(last["histogram"]), 1)
    for low, count in zip(EDGES[:-1].tolist(), last["histogram"], strict=True):
        mark = "<- cut" if low <= last["cutoff"] < low + 1 else ""
        lines.append(
            f"{low:4d} .. {low + 1:3d} {count:9,d} {'#' * round(40 * count / most)} {mark}".rstrip()
        )
    lines += ["```", ""]
    for name, title in (("kept", "just above"), ("dropped", "just below")):
        lines += [f"Pages {title} the cut:", ""]
        lines += [
            f"- {margin:.3f} <{url}> {text}" for margin, url, text in last["nearest"][name]
        ] + [""]

    lines += [
        "## Mathematical domains",
        "",
        f"More than {100 * options['domain_share']:.0f} % of their pages were "
        f"collected; the {SHOWN} with most of {last['math_domains']} (all of them in "
        f"`round_{last['round']}/domains.txt`).",
        "",
    ]
    rows = []
    for row in last["table"][:SHOWN]:
        paths = (
            f"/{one['prefix'].partition('/')[2]} {one['kept']} of {one['total']}"
            for one in row["prefixes"][:4]
        )
        share = percent(row["kept"], row["total"])
        rows.append((row["domain"], row["total"], row["kept"], share, ", ".join(paths)))
    lines += table(("domain", "pages", "collected", "share", "paths"), rows)
    return "\n".join(lines)


def write(to: Path, found: dict) -> None:
    with atomic_write(to / "report.json") as file:
        json.dump(found, file, indent=1, ensure_ascii=False)
    with atomic_write(to / "report.md") as file:
        file.write(markdown(found))


# ---- manifest.json ---------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inputs(options: dict) -> list[Path]:
    """The files that a run reads beside the crawl."""
    found = [*jsonl_files(options["positives"]), *jsonl_files(options["negatives"])]
    found += [Path(options["truth"])] if options["truth"] else []
    return [
        *found,
        *sorted(path for path in Path(options["benchmarks"]).rglob("*") if path.is_file()),
    ]


def version(package: str) -> str:
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
    """TO/manifest.json: the options, without the annotation file, whose URL prefixes after each round it holds itself;
    the SHA-256 of crawl, inputs, corpus and token shards; versions."""
    options = {name: value for name, value in options.items() if name != "annotation"}
    engine = hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    )
    found = {
        "version": VERSION,
        "code": engine.hexdigest(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "options": options,
        "crawl": crawl,
        "annotations": annotations,
        "inputs": {str(path): sha256(path) for path in inputs(options)},
        "corpus": corpus,
        "shards": tokens and {file["name"]: file["sha256"] for file in tokens["files"]},
    }
    with atomic_write(to / "manifest.json") as file:
        json.dump(found, file, indent=1, ensure_ascii=False)


def read_manifest(path: Path) -> dict:
    """Raises InputError where it is none of ours, or an input is no longer what it was."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        made, known = found["version"], found["inputs"]
        found["crawl"], found["corpus"], found["options"], found["annotations"]
    except OSError as error:
        raise InputError(
            f"--repeat {path}: cannot be read ({error.strerror}); give a run's manifest.json"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"--repeat {path}: not the manifest of a mined corpus; give a run's manifest.json"
        ) from None
    if made != VERSION:
        raise InputError(
            f"--repeat {path}: of version {made}, this code writes {VERSION}; repeat it with its own code"
        )
    for name, digest in known.items():
        if not Path(name).is_file():
            raise InputError(
                f"--repeat {path}: its input {name} is not there any more; bring it back"
            )
        if sha256(Path(name)) != digest:
            raise InputError(
                f"--repeat {path}: its input {name} has changed since; bring the old one back"
            )
    return found


def compare_crawl(old: Path, crawl: dict[str, str]) -> dict:
    """The manifest. Raises InputError where the crawl files are not its own."""
    found = read_manifest(old)
    before = found["crawl"]
    if changed := sorted(name for name in before | crawl if before.get(name) != crawl.get(name)):
        raise InputError(
            f"--repeat {old}: crawl file {changed[0]} is not the one of that run; bring the old one back"
        )
    return found


def compare(old: Path, new: Path) -> None:
    """Raises InputError where a repeated run has another result."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (old, new))
    if before["corpus"] != after["corpus"]:
        changed = sorted(
            name
            for name in before["corpus"] | after["corpus"]
            if before["corpus"].get(name) != after["corpus"].get(name)
        )
        differ = [
            f"{name} {before[name]} -> {after[name]}"
            for name in ("code", "python", "packages")
            if before[name] != after[name]
        ]
        raise InputError(
            f"--repeat {old}: corpus/{changed[0]} and {len(changed) - 1} more came out different "
            f"({'; '.join(differ) or 'with the same code and packages'})"
        )
