"""The comparisons of bench/results.jsonl as Markdown tables: the newest of each, with its origin.

    python bench/tables.py                              one table of all
    python bench/tables.py --write docs/speed.md        rewrites what stands between its markers

Markers are lines: `<!-- table: grpo_step, sampling -->` with the benches of the table in its order
(`all` for every one), and `<!-- end of table -->`. A comparison is a bench, or a case of one, with
its settings on a machine; the number of rounds does not matter. A ratio above 1 says that ours is
faster.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.turns import RESULTS, median
from data.io import CommandParser, InputError, atomic_write, read_jsonl, run_cli

MARKED = re.compile(r"(?m)^(<!-- table: (.*?) -->\n)(.*?)^(<!-- end of table -->)$", re.DOTALL)
HEAD = ("work", "settings", "ours", "memory", "peer", "its memory", "ratio", "rounds", "made")


@dataclass(frozen=True)
class Comparison:
    """A row of results, or one of its cases."""

    work: str
    sides: dict[str, dict]
    row: dict

    @property
    def settings(self) -> dict[str, str]:
        """The settings without the rounds, empty values, and a peer's dtype that equals ours."""
        settings = {"dtype": "float32"} | self.row["settings"]
        for name in ("rounds", "cases"):
            settings.pop(name, None)
        if settings.get("peer_dtype") == settings["dtype"]:
            del settings["peer_dtype"]
        return {name: str(value) for name, value in settings.items() if value != ""}

    @property
    def identity(self) -> tuple:
        settings = tuple(sorted(self.settings.items()))
        return self.work, settings, self.row["cpu"], self.row["cores"]

    @property
    def others(self) -> dict[str, dict]:
        return {name: side for name, side in self.sides.items() if name != "ours"}


def comparisons(row: dict) -> list[Comparison]:
    """The comparisons of a row."""
    found, bench = row["found"], row["bench"]
    if "rows" in next(iter(found.values())):
        return [Comparison(bench, found, row)]
    return [Comparison(f"{bench}, {case}", sides, row) for case, sides in found.items()]


def newest(rows: list[dict], benches: list[str]) -> list[Comparison]:
    """The last of each comparison, in the order of the benches and of their first rows."""
    last = {}
    for bench in benches:
        for row in rows:
            if row["bench"] == bench:
                last |= {one.identity: one for one in comparisons(row)}
    return list(last.values())


def speed(side: dict) -> str:
    """Median, least and most of a side: tokens a second if its rounds have them, else seconds."""
    if "speed" in side["rows"][0]:
        return "{:,.0f} tokens/s ({:,.0f} - {:,.0f})".format(*median(side["rows"], "speed"))
    return "{:.3f} s ({:.3f} - {:.3f})".format(*median(side["rows"]))


def ratio(ours: dict, peer: dict) -> float:
    """How many times as fast ours is, by the medians."""
    if "speed" in ours["rows"][0]:
        return median(ours["rows"], "speed")[0] / median(peer["rows"], "speed")[0]
    return median(peer["rows"])[0] / median(ours["rows"])[0]


def made(one: Comparison) -> str:
    """Machine, versions and commit, with the versions of the peers."""
    row = one.row
    parts = [f"{row['cores']} cores of {row['cpu']}, {row['memory_gib']} GiB"]
    parts.append(f"Python {row['python']}")
    if "torch" in row:
        parts.append(f"torch {row['torch']}")
    for side in one.others.values():
        versions = side.get("versions", {})
        for name, text in versions.items():
            part = f"{name} {text}"
            if name not in ("python", "torch", "numpy") and part not in parts:
                parts.append(part)
        if versions.get("torch") != row.get("torch"):
            parts.append(f"the peer's torch {versions.get('torch', 'not recorded')}")
    return f"{', '.join(parts)}; commit {row['commit']}, {row['when'][:10]}"


def table(found: list[Comparison]) -> str:
    """A Markdown table of comparisons. Its last column has letters, explained below it."""
    origins = dict.fromkeys(map(made, found))
    letters = {origin: chr(ord("a") + i) for i, origin in enumerate(origins)}
    lines = [list(HEAD), ["---"] * len(HEAD)]
    for one in found:
        settings = ", ".join(f"{name} {value}" for name, value in one.settings.items())
        ours = one.sides["ours"]
        start = [one.work, settings, speed(ours), memory(ours)]
        end = [str(len(ours["rows"])), letters[made(one)]]
        for name, side in one.others.items():
            peer = [f"{name}: {speed(side)}", memory(side), f"{ratio(ours, side):.2f}"]
            lines.append([*start, *peer, *end])
            start = [""] * len(start)  # a further peer of the same run
        if not one.others:
            lines.append([*start, "", "", "", *end])
    texts = [f"| {' | '.join(line)} |" for line in lines]
    notes = [f"- {letter}: {origin}" for origin, letter in letters.items()]
    return "\n".join([*texts, "", *notes]) + "\n"


def memory(side: dict) -> str:
    return f"{side['peak_mb']:,.0f} MB"


def rewritten(text: str, rows: list[dict], where: str) -> str:
    """`text` with new tables between its markers. Raises InputError if there are none."""
    opened = len(re.findall(r"(?m)^<!-- table: ", text))
    closed = len(re.findall(r"(?m)^<!-- end of table -->$", text))
    if not opened or opened != closed or len(MARKED.findall(text)) != opened:
        raise InputError(
            f"{where}: {opened} lines <!-- table: ... --> and {closed} <!-- end of table -->; "
            "put one after each other"
        )

    def new(match: re.Match) -> str:
        return f"{match[1]}{chosen(rows, match[2], where)}{match[4]}"

    return MARKED.sub(new, text)


def chosen(rows: list[dict], names: str, where: str) -> str:
    """The table of the benches in `names` (with commas), or of "all". Raises InputError."""
    known = list(dict.fromkeys(row["bench"] for row in rows))
    benches = known if names == "all" else [name.strip() for name in names.split(",")]
    for name in benches:
        if name not in known:
            raise InputError(
                f"{where}: no result of {name!r}; there are some of {', '.join(known)}"
            )
    return table(newest(rows, benches))


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
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
