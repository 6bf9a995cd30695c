"""Does this project give published verdicts? Labeled solutions of GSM8K, and tool-integrated
solutions.

    python -m bench.regrade --data ../shared/data [--to FILE.json]

Reads gsm8k/example_model_solutions.jsonl (openai/grade-school-math: four models' solutions, each
with is_correct) and tool-integrated/*.jsonl (microsoft/ToRA: text, ```python blocks, their
```output, the answer read from it). Runs the programs again. Prints the counts and every
difference.
"""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

from data import answers
from data.io import CommandParser, InputError, atomic_write, read_jsonl, run_cli
from data.sandbox.sandbox import Sandbox
from evaluation import solve
from reward import printed

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def labeled(path: Path) -> tuple[int, list[dict]]:
    """(number of solutions, differences). The files mark the answer by a last line "A: 18"."""
    total, differences = 0, []
    for line, row in read_jsonl(path):
        gold = answer_of(row["ground_truth"])
        for model in MODELS:
            solution, total = row[model], total + 1
            answer = answer_of(solution["solution"])
            verdict = answers.compare(gold, answer)
            if verdict.equal != solution["is_correct"]:
                differences.append(
                    {
                        "line": line,
                        "model": model,
                        "gold": gold,
                        "answer": answer,
                        "label": solution["is_correct"],
                        "ours": verdict.equal,
                        "reason": verdict.reason,
                        "end": solution["solution"][-80:],
                    }
                )
    return total, differences


def answer_of(text: str) -> str | None:
    return answers.extract(re.sub(r"(?m)^A:", "####", text))


def trajectories(path: Path, sandbox: Sandbox, limit: int | None = None) -> tuple[dict, list[dict]]:
    """(counts, differences) of tool-integrated solutions.

    Runs every block after those before it. Compares what it prints with the ```output in the text,
    the answer that we read with the reported one, and the verdicts on both.
    """
    rows, calls = [], []
    for line, row in itertools.islice(read_jsonl(path), limit):
        text, earlier = row["code"][0], []
        pieces = text.split("```output")
        for number, piece in enumerate(pieces[:-1]):
            code = solve.blocks(piece)
            shown = pieces[number + 1].partition("```")[0].strip()
            calls.append((line, shown, solve.session(list(earlier), code)))
            earlier.append(code)
        rows.append((line, row, text, len(pieces) - 1))
    results = sandbox.run_many([program for _, _, program in calls])
    counts, differences, last = Counter(solutions=len(rows), programs=len(calls)), [], {}
    for (line, shown, program), result in zip(calls, results, strict=True):
        ours = solve.output_text(result).strip()
        last[line] = result
        if ours == shown:
            counts["outputs equal"] += 1
        elif same_end(ours, shown):
            counts["outputs equal in their last line or value"] += 1
        else:
            row = {"line": line, "what": "output", "reported": shown, "ours": ours}
            differences.append(row | {"program": program})
    for line, row, text, rounds in rows:
        reported, gold = str(row["pred"][0]), row["gt"]
        final = text.rpartition("```output")[2].partition("```\n")[2] if rounds else text
        ours = answers.extract(final)
        if ours is None and line in last:
            ours = printed(last[line])
        equal = answers.compare(reported, ours).equal or (not reported and ours is None)
        counts["answers equal"] += equal
        verdicts = [answers.compare(gold, answer).equal for answer in (reported, ours)]
        counts["verdicts equal"] += verdicts[0] == verdicts[1]
        counts["right, reported"] += verdicts[0]
        counts["right, ours"] += verdicts[1]
        if not equal or verdicts[0] != verdicts[1]:
            row = {"line": line, "what": "answer", "gold": gold, "reported": reported}
            row |= {"ours": ours, "verdicts": verdicts, "end": text[-160:]}
            differences.append(row)
    return dict(counts), differences


def same_end(a: str, b: str) -> bool:
    """True if two outputs have the same last line or value."""
    return a.splitlines()[-1:] == b.splitlines()[-1:] or answers.compare(b, a).equal


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with gsm8k and tool-integrated"
    )
    parser.add_argument("--to", type=Path, help="file for the differences, as JSON")
    options = parser.parse_args()

    # labeled solutions
    total, wrong = labeled(options.data / "gsm8k" / "example_model_solutions.jsonl")
    print(f"labeled solutions: {total}, verdicts equal to their labels: {total - len(wrong)}")
    for one in wrong:
        print("  ", json.dumps(one, ensure_ascii=False))

    # tool-integrated solutions
    folder = options.data / "tool-integrated"
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise InputError(f"{folder}: no .jsonl file; see --help for what is read")
    found = {"labeled": wrong}
    with Sandbox() as sandbox:
        for path in paths:
            counts, differences = trajectories(path, sandbox)
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            print(f"{path.name}: {shown}")
            for one in differences:
                row = {name: value for name, value in one.items() if name != "program"}
                print("  ", json.dumps(row, ensure_ascii=False))
            found[path.name] = differences
    if options.to:
        with atomic_write(options.to) as file:
            json.dump(found, file, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    run_cli(main)
