"""The audit: how far an accuracy can be trusted. A table of robustness, kinds of error, votes, and whether two differ.

    python eval.py --audit --model DIR --problems FILE[,FILE] [--formats cot,pot] [--samples 4] --to DIR
    python -m evaluation.audit compare DIR_A DIR_B [--to FILE.json]     (directories that eval.py wrote)

Rows of the table are the problems as they are and the same problems changed (data/problems/perturb.py), other prompts, other
temperatures, short and long problems, strict judging; columns are problem files and ways of solving. Each row is
compared with the original on the same problems, pair by pair. All rows but the temperatures are greedy.
"""

import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import eval as evaluation
from data import answers, prompts
from data.answers import verifier
from data.answers.equations import equations
from data.io import InputError, atomic_write, run_cli
from data.problems.perturb import PERTURBATIONS, perturb
from data.problems.problem import Problem
from data.sandbox.sandbox import Sandbox
from evaluation import report, solve
from evaluation.few_shot import FewShot
from evaluation.significance import (
    bootstrap,
    compare_command,
    difference,
    percent,
    shares,
    small,
    table,
)
from generate import Sampling

# (problems, sampling, way, template) -> a record per problem, as eval.evaluate makes them
Evaluate = Callable[[Sequence[Problem], Sampling, FewShot, str], list[dict]]


# ---------------------------------------------------------------------------------------------------------------------
# The table


def reworded(way: FewShot, rewrite: Callable[[str], str]) -> FewShot:
    """The way with its prompts rewritten, exemplars and all, and what ends a completion alike."""
    exemplars = {group: tuple(map(rewrite, texts)) for group, texts in way.exemplars.items()}
    return replace(
        way,
        question=lambda problem: rewrite(way.question(problem)),
        exemplars=exemplars,
        stop=tuple(map(rewrite, way.stop)),
    )


_LABELS = {
    "Question:": "Q:",
    "Answer:": "A:",
    "Solution:": "S:",
    "Program:": "Python:",
    "问题：": "题：",
    "解答：": "答：",
    "求解：": "解：",
    "程序：": "代码：",
}


def _other_labels(text: str) -> str:
    return re.sub(rf"(?m)^(?:{'|'.join(_LABELS)})", lambda match: _LABELS[match[0]], text)


def _small_letters(text: str) -> str:
    return re.sub(r"\(([A-J])\)", lambda match: f"({match[1].lower()})", text)


def other_prompts(
    items: Sequence[Problem], format: str, way: FewShot, template: str
) -> dict[str, tuple[FewShot, str]]:
    """Row -> (way, template) of other ways to put the same question."""
    found: dict[str, tuple[FewShot, str]] = {}
    if template == "plain":
        found["prompt Q: A:"] = reworded(way, _other_labels), template
    for other in prompts.TEMPLATES[:2]:
        if other != template:
            found[f"prompt {other}"] = solve.zero_shot(format, other), other
    if any(item.kind == "choice" for item in items):
        found["small letters"] = reworded(way, _small_letters), template
    return found


def cell(records: list[dict], base: list[dict] | None = None, verdict: str = "right") -> dict:
    """A row's figures: {"n", "accuracy", "interval"}; against `base`, the same problems in the same order, also
    "change" (`difference`) and "kept", the share of what was right that still is."""
    values = shares(records, verdict)
    binary = set(values) <= {0, 1}
    interval = (
        evaluation.wilson(sum(values), len(values))
        if binary
        else bootstrap(np.asarray(values), 10_000, 0)
    )
    found = {"n": len(values), "accuracy": sum(values) / len(values), "interval": interval}
    if base is not None:
        before = shares(base)
        found["change"] = difference(before, values)
        still = [value for value, was in zip(values, before, strict=True) if was == 1]
        found["kept"] = sum(still) / len(still) if still else None
    return found


def audit(
    evaluate: Evaluate,
    items: Sequence[Problem],
    format: str,
    way: FewShot | None = None,
    template: str = "plain",
    sampling: Sampling | None = None,
    temperatures: Sequence[float] = (0.3, 0.7, 1.0),
    progress: Callable[[str], None] = lambda row: None,
) -> dict:
    """One column of the table and what belongs to it. sampling: K samples of the sweep, their seed, longest completion.

    {"rows": {name: cell}, "left_out": {name: how many problems a change does not apply to}, "consistency", "errors",
    "verifiers", "votes"}. `progress` is told each row before it is solved."""
    if format == "proof":
        raise InputError("proofs have no answers to audit; leave their benchmarks out")
    sampling = sampling or Sampling(4, 0.7)
    way = way or solve.zero_shot(format, template)
    greedy = replace(sampling, samples=1, temperature=0.0, top_p=1.0)
    progress("original")
    original = evaluate(items, greedy, way, template)
    by_id = {record["id"]: record for record in original}
    if len(by_id) < len(items):
        raise InputError(
            "two problems have the same id; an audit pairs problems by it: give each its own"
        )
    rows, left_out = {"original": cell(original)}, {}
    held = {record["id"]: [bool(record["attempts"][0]["right"])] for record in original}
    for name in PERTURBATIONS:
        changed = [other for item in items if (other := perturb(item, name, sampling.seed))]
        left_out[name] = len(items) - len(changed)
        if not changed:
            continue
        progress(name)
        records = evaluate(changed, greedy, way, template)
        rows[name] = cell(records, [by_id[record["id"]] for record in records])
        for record in records:
            held[record["id"]].append(bool(record["attempts"][0]["right"]))
    for name, (other, own) in other_prompts(items, format, way, template).items():
        progress(name)
        rows[name] = cell(evaluate(items, greedy, other, own), original)
    sampled = {}
    for temperature in temperatures:
        name = f"temperature {temperature:g}"
        progress(name)
        sampled[temperature] = evaluate(
            items, replace(sampling, temperature=temperature), way, template
        )
        rows[name] = cell(sampled[temperature], original)
    for name, records in halves(items, original).items():
        rows[name] = cell(records)
    rows["strict"] = cell(original, original, "strict")
    tried = [verdicts for verdicts in held.values() if len(verdicts) > 1]
    found = {
        "rows": rows,
        "left_out": left_out,
        "consistency": {
            "problems": len(tried),
            "right": sum(v[0] for v in tried) / len(tried) if tried else None,
            "right in all": sum(map(all, tried)) / len(tried) if tried else None,
            "changes a problem": sum(len(v) - 1 for v in tried) / len(tried) if tried else None,
        },
        "errors": errors(original, format),
        "verifiers": second_opinion(original, format),
    }
    if sampled and sampling.samples > 1:
        nearest = min(sampled, key=lambda temperature: abs(temperature - 0.7))
        found["votes"] = {"temperature": nearest, **votes(sampled[nearest])}
    return found


def evaluator(
    model, tokenizer, format: str, sandbox: Sandbox | None, max_rows: int = 256, rounds: int = 4
) -> Evaluate:
    """eval.evaluate of this model, as `audit` wants it."""

    def solved(items, sampling, way, template):
        return evaluation.evaluate(
            model,
            tokenizer,
            items,
            format,
            sampling,
            template,
            sandbox,
            max_rows,
            way=way,
            rounds=rounds,
        )[1]

    return solved


def halves(items: Sequence[Problem], records: list[dict]) -> dict[str, list[dict]]:
    """The records by length of the question (up to the median, and above), and by steps of the solution where known."""
    steps = [item.solution and (len(equations(item.solution)[0]) or None) for item in items]
    found = {}
    for below, above, sizes in (
        ("short", "long", [len(item.question) for item in items]),
        ("few steps", "many steps", steps),
    ):
        known = [
            (size, record) for size, record in zip(sizes, records, strict=True) if size is not None
        ]
        if not known:
            continue
        middle = statistics.median_low(size for size, _ in known)
        low = [record for size, record in known if size <= middle]
        high = [record for size, record in known if size > middle]
        if low and high:
            found[f"{below} (up to {middle})"], found[f"{above} (more than {middle})"] = low, high
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Errors, the second verifier, votes

# A wrong attempt is of the first kind that fits.
ERRORS = {
    "truncated": "it ran into the limit of tokens or of rounds, or its prompt left no room",
    "program error": "its last program failed, or printed nothing",
    "verifier mismatch": "the second verifier takes its answer for right",
    "format": "the right value is its last number or its last result, but not the answer that was found",
    "no answer": "no answer was found in it",
    "arithmetic": "an equation in it is false",
    "set-up": "all its equations hold, or there are none, and the answer is wrong",
}


def said(attempt: dict, format: str) -> str | None:
    """The answer as the second verifier finds it; a program's is what it printed."""
    return (
        attempt["answer"]
        if format == "pot"
        else verifier.stated(attempt["text"]) or attempt["answer"]
    )


def error_of(gold: str, attempt: dict, format: str) -> tuple[str, str]:
    """(kind of error of a wrong attempt, what shows it)."""
    text, answer = attempt["text"], attempt["answer"]
    if attempt["finish"] in ("length", "rounds", "prompt"):
        return "truncated", f"ended by {attempt['finish']}"
    if attempt.get("program", "none") != "none" and answer is None:
        return "program error", attempt.get(
            "error"
        ) or f"status {attempt['program']}, nothing printed"
    if verifier.agree(gold, said(attempt, format)):
        return (
            "verifier mismatch",
            f"{gold} and {said(attempt, format)} are equal to the second verifier",
        )
    found = equations(text)[0]
    if format != "pot":
        numbers = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?", text)
        for value in numbers[-1:] + [equation.text.rpartition("= ")[2] for equation in found[-1:]]:
            if answers.compare(gold, value).equal and (
                answer is None or not answers.compare(answer, value).equal
            ):
                return "format", f"{value} stands in the text, the answer found is {answer}"
    if answer is None:
        return "no answer", "nothing found"
    false = [equation.text for equation in found if not equation.holds()]
    return (
        ("arithmetic", f"{false[0]} is false")
        if false and format != "pot"
        else ("set-up", f"{answer}, not {gold}")
    )


def errors(records: list[dict], format: str, examples: int = 3) -> dict[str, dict]:
    """Kind -> {"count", "share" (of all attempts), "examples"} of the wrong attempts."""
    found = {kind: {"count": 0, "share": 0.0, "examples": []} for kind in ERRORS}
    total = sum(len(record["attempts"]) for record in records)
    for record in records:
        for attempt in record["attempts"]:
            if attempt["right"]:
                continue
            kind, why = error_of(record["answer"], attempt, format)
            one = found[kind]
            one["count"] += 1
            one["share"] = one["count"] / total
            if len(one["examples"]) < examples:
                shown = {name: record[name] for name in ("id", "question", "answer")}
                one["examples"].append(
                    shown | {"why": why, "found": attempt["answer"], "text": attempt["text"]}
                )
    return found


def second_opinion(records: list[dict], format: str, examples: int = 3) -> dict:
    """How the second verifier judges the attempts: counts by (first says, second says), the share of agreement where
    it can tell, and the attempts that only one of them, or only the relaxed rules, take for right."""
    counts, disputed, loose = Counter(), [], []
    for record in records:
        for attempt in record["attempts"]:
            if record.get("kind", "answer") != "answer":
                continue
            second = verifier.agree(record["answer"], said(attempt, format))
            first = bool(attempt["right"])
            words = {True: "right", False: "wrong", None: "unread"}
            counts[f"{words[first]}, second {words[second]}"] += 1
            shown = {"id": record["id"], "answer": record["answer"], "found": attempt["answer"]}
            if second is not None and second != first:
                disputed.append(shown | {"text": attempt["text"]})
            if first and not attempt["strict"]:
                loose.append(shown | {"reason": attempt.get("strict_reason", "")})
    told = sum(count for name, count in counts.items() if not name.endswith("unread"))
    return {
        "counts": dict(sorted(counts.items())),
        "agreement": (told - len(disputed)) / told if told else None,
        "disputed": len(disputed),
        "disputed_examples": disputed[:examples],
        "right but not strictly": len(loose),
        "loose_examples": loose[:examples],
    }


BINS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0 - 1e-9), (1.0 - 1e-9, 1.0))


def votes(records: list[dict]) -> dict:
    """Self-consistency of K samples: {"samples", "agreement" (mean share of samples that give the majority's answer),
    "accuracy" (of the majority), "distinct_answers" (mean a problem), "distinct_texts" (share of K: 1/K where all
    samples are one text), "bins" (of the majority's share: n, mean share, accuracy), "calibration_error" (mean
    distance of the two)}."""
    rows, kinds, texts = [], [], []
    for record in records:
        attempts = record["attempts"]
        classes: list[list[dict]] = []
        for attempt in attempts:
            if attempt["answer"] is None:
                continue
            for members in classes:
                if solve.same(
                    record.get("kind", "answer"), members[0]["answer"], attempt["answer"]
                ):
                    members.append(attempt)
                    break
            else:
                classes.append([attempt])
        largest = max(classes, key=len, default=[])
        rows.append((len(largest) / len(attempts), bool(largest and largest[0]["right"])))
        kinds.append(len(classes))
        texts.append(
            len({" ".join(attempt["text"].split()) for attempt in attempts}) / len(attempts)
        )
    bins = []
    for low, high in BINS:
        inside = [row for row in rows if low < row[0] <= high or low == row[0] == 0]
        if inside:
            n = len(inside)
            means = {
                "share": sum(s for s, _ in inside) / n,
                "accuracy": sum(r for _, r in inside) / n,
            }
            bins.append({"above": round(low, 2), "to": round(high, 2), "n": n, **means})
    return {
        "samples": len(records[0]["attempts"]),
        "agreement": statistics.mean(share for share, _ in rows),
        "accuracy": statistics.mean(right for _, right in rows),
        "distinct_answers": statistics.mean(kinds),
        "distinct_texts": statistics.mean(texts),
        "bins": bins,
        "calibration_error": sum(one["n"] * abs(one["accuracy"] - one["share"]) for one in bins)
        / len(rows),
    }


# ---------------------------------------------------------------------------------------------------------------------
# What is printed and written


def matrix(columns: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, lines) of the table: accuracy, the change in points against the original with its interval, p, n."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column["rows"]))
    lines = []
    for name in names:
        line = [name]
        for column in columns.values():
            one = column["rows"].get(name)
            if one is None:
                line += ["", "", "", ""]
                continue
            low, high = one["interval"]
            change = one.get("change")
            text = p = ""
            if change:
                ends = " to ".join(f"{100 * end:+.1f}" for end in change["interval"])
                text, p = f"{100 * change['difference']:+.1f} ({ends})", small(change["p"])
            line += [
                f"{percent(one['accuracy'])} ({100 * low:.1f} - {100 * high:.1f})",
                text,
                p,
                str(one["n"]),
            ]
        lines.append(line)
    return [
        "row",
        *(head for name in columns for head in (name, "change, points", "p", "n")),
    ], lines


def markdown(document: dict) -> str:
    """audit.md."""
    columns = document["columns"]
    lines = [
        "# Audit",
        "",
        f"Model: {document['model']}. "
        + ", ".join(f"{name} {value}" for name, value in document["settings"].items())
        + ".",
        "",
        "Accuracy with its 95 % interval; change against the original on the same problems, in points, with the 95 % "
        "interval of a paired bootstrap; p of McNemar's exact test (temperatures: of a sign-flip test).",
        "",
        table(*matrix(columns), markdown=True),
    ]
    for name, one in columns.items():
        steady = one["consistency"]
        lines += ["", f"## {name}", ""]
        if steady["problems"]:
            lines += [
                f"Right as they are: {percent(steady['right'])} of {steady['problems']} problems; in that and "
                f"all changed forms ({steady['changes a problem']:.1f} each): {percent(steady['right in all'])}."
            ]
        if missing := [f"{row} {count}" for row, count in one["left_out"].items() if count]:
            lines += ["", f"Problems that a change does not apply to: {', '.join(missing)}."]
        second = one["verifiers"]
        lines += [
            "",
            "Second verifier: "
            + ", ".join(f"{key}: {count}" for key, count in second["counts"].items())
            + f"; agreement {percent(second['agreement'])} where it can tell. "
            f"Right by the relaxed rules alone: {second['right but not strictly']}.",
        ]
        if vote := one.get("votes"):
            lines += [
                "",
                f"Votes of {vote['samples']} samples at temperature {vote['temperature']:g}: majority right "
                f"{percent(vote['accuracy'])}, mean share of the majority {percent(vote['agreement'])}, "
                f"{vote['distinct_answers']:.2f} different answers a problem, {percent(vote['distinct_texts'])} "
                f"of the texts different; gap of share and accuracy {percent(vote['calibration_error'])}.",
                "",
            ]
            lines += [
                table(
                    ["share of the majority", "n", "mean share", "accuracy"],
                    [
                        [
                            f"{b['above']:g} to {b['to']:g}" if b["above"] < 1 else "1",
                            str(b["n"]),
                            percent(b["share"]),
                            percent(b["accuracy"]),
                        ]
                        for b in vote["bins"]
                    ],
                    True,
                )
            ]
        lines += ["", "Wrong answers, each of the first kind that fits:", ""]
        lines += [
            table(
                ["kind", "count", "share", "rule"],
                [
                    [kind, str(found["count"]), percent(found["share"]), ERRORS[kind]]
                    for kind, found in one["errors"].items()
                ],
                True,
            )
        ]
        for kind, found in one["errors"].items():
            for example in found["examples"]:
                text = example["text"].strip().replace("\n", " / ")
                lines += [
                    "",
                    f"- {kind}, {example['id']}: {example['why']}. {example['question']!r} "
                    f"({example['answer']}): {text[:400]!r}",
                ]
    return "\n".join(lines) + "\n"


def write(document: dict, to: str) -> None:
    """audit.json and audit.md. document: {"model", "settings", "columns": {NAME.FORMAT: `audit`}}."""
    with atomic_write(Path(to) / "audit.json") as out:
        json.dump(document, out, indent=2, ensure_ascii=False)
    with atomic_write(Path(to) / "audit.md") as out:
        out.write(markdown(document))


def run(config, tasks: Sequence, model, tokenizer, sandbox: Sandbox | None, world) -> dict:
    """`eval.py --audit`: a column for each of its tasks but proofs; returns what `write` takes. Columns that are
    finished are kept when it is stopped. Raises InputError for several processes and for a folder of another audit."""
    if world.size > 1:
        raise InputError("--audit runs in one process; start it without torchrun")
    wanted = [task for task in tasks if task.format != "proof"]
    if not wanted:
        raise InputError("--audit: proofs have no answers to audit; name other benchmarks")
    names = (
        "limit",
        "shots",
        "prompts",
        "template",
        "temperatures",
        "max_new_tokens",
        "rounds",
        "seed",
    )
    settings = {name: getattr(config, name) for name in names}
    settings["samples"] = config.samples if config.samples > 1 else 4
    document = {
        "model": config.model,
        "sha256": report.fingerprint(Path(config.model)),
        "settings": settings,
        "columns": {},
    }
    path = Path(config.to) / "audit.json"
    if config.to and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if any(before[key] != document[key] for key in ("sha256", "settings")):
            raise InputError(
                f"{path}: is of another model or of other settings; give another --to, or remove it"
            )
        document["columns"] = before["columns"]
    for task in wanted:
        if task.name in document["columns"]:
            continue
        solved = evaluator(model, tokenizer, task.format, sandbox, config.max_rows, config.rounds)
        sampling = Sampling(settings["samples"], 0.7, 1.0, task.max_new_tokens, seed=config.seed)
        document["columns"][task.name] = audit(
            solved,
            task.items,
            task.format,
            task.way,
            config.template,
            sampling,
            config.temperatures,
            lambda row, name=task.name: print(f"{name}: {row}", file=sys.stderr),
        )
        if config.to:
            write(document, config.to)
    print(table(*matrix({task.name: document["columns"][task.name] for task in wanted})))
    return document


if __name__ == "__main__":
    if sys.argv[1:2] != ["compare"]:
        print(
            "error: evaluation/audit.py compare DIR_A DIR_B compares evaluations; an audit is eval.py --audit",
            file=sys.stderr,
        )
        sys.exit(2)
    run_cli(lambda: compare_command(sys.argv[2:]))
