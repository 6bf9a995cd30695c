"""A crawl of real text with the truth about it: the docstrings of installed packages, a page for each module.

    python bench/documentation.py --to DIR
    python -m data.mine --config DIR/mine.toml --benchmarks BENCHMARKS --to RUN

DIR/crawl/PACKAGE.jsonl holds pages https://PACKAGE.example/path/of/module, DIR/truth.jsonl calls those of sympy and
mpmath mathematics, and DIR/seed/positives.jsonl is a tenth of mpmath's and of sympy's core, which the crawl then lacks.
"""

import argparse
import ast
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.io import InputError, atomic_write, run_cli, write_jsonl  # noqa: E402

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
    """All docstrings of a file, one paragraph or more each; nothing where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return ""
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def modules(package: str) -> Iterator[dict]:
    """The pages of a package, in the order of their names; none where it is not installed."""
    spec = importlib.util.find_spec(package)
    root = Path(spec.origin).parent if spec and spec.origin else None
    for path in sorted(root.rglob("*.py")) if root else ():
        text = docstrings(path)
        if len(text) >= SHORTEST:
            name = path.relative_to(root.parent).with_suffix("").as_posix()
            yield {
                "url": f"https://{package.lower()}.example/{name.partition('/')[2]}",
                "text": text,
                "lang": "en",
                "date": "",
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", required=True)
    to = Path(parser.parse_args().to)
    seed, truth, tokens = [], [], 0
    for package in (*MATH, *OTHER):
        pages = list(modules(package))
        if package in MATH:
            own = [
                page
                for page in pages
                if f"{package}/{page['url'].partition('.example/')[2]}".startswith(SEED)
            ]
            seed += own[::10] if package == "sympy" else own[::3]
            pages = [page for page in pages if page not in seed]
            tokens += sum(len(page["text"].split()) for page in pages)
        if pages:
            write_jsonl(to / "crawl" / f"{package}.jsonl", pages)
        truth += [
            {"url": page["url"], "kind": "math" if package in MATH else "other"} for page in pages
        ]
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
