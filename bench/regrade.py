"""Do our doors give published verdicts? Labelled solutions of GSM8K, and tool-integrated solutions run again.

    python -m bench.regrade --data ../shared/data [--to FILE.json]

Reads gsm8k/example_model_solutions.jsonl (openai/grade-school-math: four models' solutions, each with is_correct) and
tool-integrated/*.jsonl (microsoft/ToRA: text, ```python blocks, their ```output, the answer read from it). Prints the
counts and every difference.
"""

import argparse
import itertools
import json
import re
from collections import Counter
from pathlib import Path

from data import answers
from data.io import InputError, atomic_write, read_jsonl, run_cli
from data.sandbox.sandbox import Sandbox
from evaluation import solve

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def labelled(path: Path) -> tuple[int, list[dict]]:
    """(solutions, differences). The files' own marker of the answer, a last line "A: 18", is written #### 18."""
    total, differences = 0, []
    for line, row in read_jsonl(path):
        gold = answers.extract(re.sub(r"(?m)^A:", "####", row["ground_truth"]))
        for model in MODELS:
            solution, total = row[model], total + 1
            said = answers.extract(re.sub(r"(?m)^A:", "####", solution["solution"]))
            verdict = answers.compare(gold, said)
            if verdict.equal != solution["is_correct"]:
                differences.append(
                    {
                        "line": line,
                        "model": model,
                        "gold": gold,
                        "said": said,
                        "label": solution["is_correct"],
                        "ours": verdict.equal,
                        "reason": verdict.reason,
                        "end": solution["solution"][-80:],
                    }
                )
    return total, differences


def trajectories(path: Path, sandbox: Sandbox, limit: int | None = None) -> tuple[dict, list[dict]]:
    """(counts, differences): run every block after those before it and compare what it prints with the ```output in the
    text, our reading of the answer with the reported one, our verdict with that of the reported answer."""
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
        elif (
            ours.splitlines()[-1:] == shown.splitlines()[-1:] or answers.compare(shown, ours).equal
        ):
            counts["outputs equal in their last line or value"] += 1
        else:
            differences.append(
                {
                    "line": line,
                    "what": "output",
                    "reported": shown,
                    "ours": ours,
                    "program": program,
                }
            )
    for line, row, text, rounds in rows:
        reported, gold = str(row["pred"][0]), row["gt"]
        final = text.rpartition("```output")[2].partition("```\n")[2] if rounds else text
        said = answers.extract(final)
        if said is None and line in last:
            said = solve.printed(last[line])
        equal = answers.compare(reported, said).equal or (not reported and said is None)
        counts["answers equal"] += equal
        verdicts = [answers.compare(gold, answer).equal for answer in (reported, said)]
        counts["verdicts equal"] += verdicts[0] == verdicts[1]
        counts["right, reported"] += verdicts[0]
        counts["right, ours"] += verdicts[1]
        if not equal or verdicts[0] != verdicts[1]:
            differences.append(
                {
                    "line": line,
                    "what": "answer",
                    "gold": gold,
                    "reported": reported,
                    "ours": said,
                    "verdicts": verdicts,
                    "end": text[-160:],
                }
            )
    return dict(counts), differences


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Judge published solutions again and list where verdicts differ."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with gsm8k and tool-integrated"
    )
    parser.add_argument("--to", type=Path, help="file for the differences, as JSON")
    options = parser.parse_args()
    total, wrong = labelled(options.data / "gsm8k" / "example_model_solutions.jsonl")
    print(f"labelled solutions: {total}, verdicts equal to their labels: {total - len(wrong)}")
    for one in wrong:
        print("  ", json.dumps(one, ensure_ascii=False))
    paths = sorted((options.data / "tool-integrated").glob("*.jsonl"))
    if not paths:
        raise InputError(
            f"{options.data / 'tool-integrated'}: no .jsonl file; see --help for what is read"
        )
    found = {"labelled": wrong}
    with Sandbox() as sandbox:
        for path in paths:
            counts, differences = trajectories(path, sandbox)
            print(f"{path.name}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
            for one in differences:
                print(
                    "  ",
                    json.dumps(
                        {k: v for k, v in one.items() if k != "program"}, ensure_ascii=False
                    ),
                )
            found[path.name] = differences
    if options.to:
        with atomic_write(options.to) as file:
            json.dump(found, file, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    run_cli(main)
