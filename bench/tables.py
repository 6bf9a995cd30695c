"""The comparisons of bench/results.jsonl as Markdown tables: the newest of each, with where and with what it was made.

    python bench/tables.py                              one table of all
    python bench/tables.py --write docs/speed.md        rewrites what stands between its markers

Markers are lines of their own, `<!-- table: grpo_step, sampling -->` with the benches of the table in its order (`all`
for every one), and `<!-- end of table -->`. A comparison is a bench, or a case of one, with its settings on a machine;
how many rounds it took does not make it another one. Ratios above 1 say that ours is faster.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.turns import RESULTS, median
from data.io import InputError, atomic_write, read_jsonl, run_cli

MARKED = re.compile(r"(?m)^(<!-- table: (.*?) -->\n)(.*?)^(<!-- end of table -->)$", re.DOTALL)
HEAD = ("work", "settings", "ours", "memory", "peer", "its memory", "ratio", "rounds", "made")


@dataclass(frozen=True)
class Comparison:
    """One work of a row of results: the row itself, or one of its cases."""

    work: str
    sides: dict[str, dict]
    row: dict

    @property
    def settings(self) -> dict[str, str]:
        """But for the rounds, what says nothing, and a peer's dtype that is also ours."""
        settings = {"dtype": "float32"} | self.row["settings"]
        left_out = {"rounds", "cases"} | (
            {"peer_dtype"} if settings.get("peer_dtype") == settings["dtype"] else set()
        )
        return {
            name: str(value)
            for name, value in settings.items()
            if name not in left_out and value != ""
        }

    @property
    def identity(self) -> tuple:
        return self.work, tuple(sorted(self.settings.items())), self.row["cpu"], self.row["cores"]


def comparisons(row: dict) -> list[Comparison]:
    found, bench = row["found"], row["bench"]
    if "rows" in next(iter(found.values())):
        return [Comparison(bench, found, row)]
    return [Comparison(f"{bench}, {case}", sides, row) for case, sides in found.items()]


def newest(rows: list[dict], benches: list[str]) -> list[Comparison]:
    """The last of each comparison, where the first stood, in the order of the benches."""
    last = {
        one.identity: one
        for bench in benches
        for row in rows
        if row["bench"] == bench
        for one in comparisons(row)
    }
    return list(last.values())


def speed(side: dict) -> str:
    """Median, least and most of a side: tokens a second where its rounds say so, else seconds."""
    if "speed" in side["rows"][0]:
        return "{:,.0f} tokens/s ({:,.0f} - {:,.0f})".format(*median(side["rows"], "speed"))
    return "{:.3f} s ({:.3f} - {:.3f})".format(*median(side["rows"]))


def ratio(ours: dict, peer: dict) -> float:
    """How many times as fast ours is, by the medians."""
    if "speed" in ours["rows"][0]:
        return median(ours["rows"], "speed")[0] / median(peer["rows"], "speed")[0]
    return median(peer["rows"])[0] / median(ours["rows"])[0]


def made(one: Comparison) -> str:
    """Machine, versions and commit; those of the peers by name."""
    row, peers = (
        one.row,
        [side.get("versions", {}) for name, side in one.sides.items() if name != "ours"],
    )
    parts = [
        f"{row['cores']} cores of {row['cpu']}, {row['memory_gib']} GiB",
        f"Python {row['python']}",
    ]
    parts += [f"torch {row['torch']}"] if "torch" in row else []
    for versions in peers:
        parts += [
            f"{name} {text}"
            for name, text in versions.items()
            if name not in ("python", "torch", "numpy")
        ]
        if versions.get("torch") != row.get("torch"):
            parts.append(f"the peer's torch {versions.get('torch', 'not recorded')}")
    return ", ".join(parts) + f"; commit {row['commit']}, {row['when'][:10]}"


def table(found: list[Comparison]) -> str:
    """A Markdown table of comparisons, and below it what its letters stand for."""
    notes = {note: chr(ord("a") + i) for i, note in enumerate(dict.fromkeys(map(made, found)))}
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join(["---"] * len(HEAD)) + " |"]
    for one in found:
        settings = ", ".join(f"{name} {value}" for name, value in one.settings.items())
        ours, peers = (
            one.sides["ours"],
            {name: side for name, side in one.sides.items() if name != "ours"},
        )
        for name, peer in (peers or {"": None}).items():
            other = (
                [f"{name}: {speed(peer)}", memory(peer), f"{ratio(ours, peer):.2f}"]
                if peer
                else ["", "", ""]
            )
            cells = [
                one.work,
                settings,
                speed(ours),
                memory(ours),
                *other,
                str(len(ours["rows"])),
                notes[made(one)],
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return (
        "\n".join([*lines, "", *(f"- {letter}: {note}" for note, letter in notes.items())]) + "\n"
    )


def memory(side: dict) -> str:
    return f"{side['peak_mb']:,.0f} MB"


def rewritten(text: str, rows: list[dict], where: str) -> str:
    """`text` with its marked tables made anew. Raises InputError where there is none, or one cannot be made."""

    def anew(found: re.Match) -> str:
        return f"{found[1]}{chosen(rows, found[2], where)}{found[4]}"

    opened, closed = (
        len(re.findall(r"(?m)^<!-- table: ", text)),
        len(re.findall(r"(?m)^<!-- end of table -->$", text)),
    )
    if not opened or opened != closed or len(MARKED.findall(text)) != opened:
        raise InputError(
            f"{where}: {opened} lines <!-- table: ... --> and {closed} <!-- end of table -->; put one after each other"
        )
    return MARKED.sub(anew, text)


def chosen(rows: list[dict], names: str, where: str) -> str:
    """The table of the benches in `names`, with commas between, or of all."""
    known = list(dict.fromkeys(row["bench"] for row in rows))
    benches = known if names == "all" else [name.strip() for name in names.split(",")]
    for name in benches:
        if name not in known:
            raise InputError(
                f"{where}: no result of {name!r}; there are some of {', '.join(known)}"
            )
    return table(newest(rows, benches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", default=str(RESULTS), help="the file of results")
    parser.add_argument("--write", help="a Markdown file with markers, to be rewritten")
    given = parser.parse_args()
    rows = [row for _, row in read_jsonl(given.results)]
    if not rows:
        raise InputError(
            f"{given.results}: no results; run a comparison first (bench/grpo_step.py)"
        )
    if not given.write:
        print(chosen(rows, "all", given.results), end="")
        return
    path = Path(given.write)
    text = rewritten(path.read_text(encoding="utf-8"), rows, given.write)
    with atomic_write(path) as file:
        file.write(text)
    print(f"written to {path}")


if __name__ == "__main__":
    run_cli(main)
