"""A crawl of real text with known labels: the docstrings of installed packages, a page per module.

    python bench/documentation.py --to DIR
    python -m data.mine --config DIR/mine.toml --benchmarks BENCHMARKS --to RUN

DIR/crawl/PACKAGE.jsonl has pages https://PACKAGE.example/path/of/module. DIR/truth.jsonl labels
those of sympy and mpmath as mathematics. DIR/seed/positives.jsonl is a tenth of sympy's core and a
third of mpmath, which the crawl then lacks.
"""

import ast
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.io import CommandParser, InputError, atomic_write, run_cli, write_jsonl  # noqa: E402

MATH = ("sympy", "mpmath")
OTHER = (
    "matplotlib",
    "networkx",
    "numpy",
    "torch",
    "hypothesis",
    "PIL",
    "distributed",
    "dask",
    "pip",
)
SEED = ("sympy/core", "mpmath")
SHORTEST = 400  # characters of a page


def docstrings(path: Path) -> str:
    """All docstrings of a file; nothing if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return ""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(filter(None, texts))


def modules(package: str) -> Iterator[dict]:
    """The pages of a package by name; none if it is not installed."""
    spec = importlib.util.find_spec(package)
    root = Path(spec.origin).parent if spec and spec.origin else None
    for path in sorted(root.rglob("*.py")) if root else ():
        text = docstrings(path)
        if len(text) >= SHORTEST:
            name = path.relative_to(root.parent).with_suffix("").as_posix()
            url = f"https://{package.lower()}.example/{name.partition('/')[2]}"
            yield {"url": url, "text": text, "lang": "en", "date": ""}


def path_of(package: str, page: dict) -> str:
    """The path of a page's module, e.g. sympy/core/add."""
    return f"{package}/{page['url'].partition('.example/')[2]}"


def main() -> None:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", required=True)
    to = Path(parser.parse_args().to)
    seed, truth, tokens = [], [], 0
    for package in (*MATH, *OTHER):
        pages = list(modules(package))
        if package in MATH:
            inside = [page for page in pages if path_of(package, page).startswith(SEED)]
            seed += inside[::10] if package == "sympy" else inside[::3]
            pages = [page for page in pages if page not in seed]
            tokens += sum(len(page["text"].split()) for page in pages)
        if pages:
            write_jsonl(to / "crawl" / f"{package}.jsonl", pages)
        kind = "math" if package in MATH else "other"
        truth += [{"url": page["url"], "kind": kind} for page in pages]
        print(f"{package}: {len(pages)} pages")
    if not seed:
        raise InputError(f"none of {', '.join(MATH)} is installed; pip install sympy mpmath")
    write_jsonl(to / "seed" / "positives.jsonl", seed)
    write_jsonl(to / "truth.jsonl", truth)
    with atomic_write(to / "mine.toml") as file:
        file.write(f"""crawl = ["{to}/crawl"]
positives = ["{to}/seed/positives.jsonl"]
truth = "{to}/truth.jsonl"
annotate = "auto"
keep_tokens = [{tokens // 4}, {tokens // 2}, {9 * tokens // 10}]
examples = 5000
domain_pages = 5
width = 64
rate = 0.5
buckets = 262_144
partitions = 2
""")
    print(f"{len(seed)} pages in the seed corpus; {tokens} words of mathematics in the crawl")


if __name__ == "__main__":
    run_cli(main)
