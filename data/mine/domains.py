"""From the pages that were kept to the sites that are mathematical (paper 2.1): domains, their URL paths, annotation.

A domain is the pages that share a base URL. It counts as mathematical when more than 10 % of its pages were kept. Of
each such domain a person is shown the URL prefixes, with counts and examples, and says which hold mathematics; the
pages under those prefixes that were not kept become positive examples of the next round.

    domain_counts, merge_domains    one pass over the shards: {domain: [pages, kept]}
    math_domains                    the 10 % rule
    prefix_counts, merge_prefixes   a second pass, over the mathematical domains alone: {prefix: Prefix}
    domain_table, table_text        what a person sees
    annotate, auto_annotate         the questionnaire, and a rule that stands in for the person
    read_annotations, under         the annotation file, and which URLs it covers

A prefix is a host, or a host and whole segments of a path: "school.example/math" covers school.example/math, /math/1
and /math?page=1, not /mathematics. Merging is associative and in any order, so that neither the number of workers nor
the order in which they finish changes a count or an example.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

from data.io import InputError, atomic_write
from data.mine.pages import base_url

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_URL = re.compile(
    r"(?:[a-z][a-z0-9+.-]*://|//)?([^/?#]*)([^?#;]*)([?#;]?)", re.IGNORECASE
)  # host, path, what follows
_HOST = re.compile(r"(?:[\w-]+\.)+[\w-]+")


def _segments(url: str) -> tuple[str, list[str], bool]:
    """(domain, segments of the path, whether the last of them is a folder or takes a query). The domain is "" where
    the host has no dot in it."""
    url = url.strip()
    if not url.isprintable() or " " in url:  # white space, and what UTF-8 cannot hold
        url = re.sub(r"\s", "%20", url.encode("utf-8", "replace").decode())
    host, path, mark = _URL.match(url).groups()
    return (
        _domain(host),
        [part for part in path.split("/") if part],
        mark == "?" or path.endswith("/"),
    )


@lru_cache(2**16)  # the pages of a host come again and again
def _domain(host: str) -> str:
    domain = base_url("//" + host)
    return domain if _HOST.fullmatch(domain) else ""


def prefixes(url: str, depth: int = 2) -> list[str]:
    """The prefixes that a page lies under, the domain first, at most `depth` segments of path. The name of the page
    itself is none, unless a query follows: then all that tells pages apart is in the query.

    >>> prefixes("https://www.a.example/math/algebra/1.html")
    ['a.example', 'a.example/math', 'a.example/math/algebra']
    >>> prefixes("http://a.example/viewtopic?t=7")
    ['a.example', 'a.example/viewtopic']
    """
    domain, parts, folder = _segments(url)
    parts = parts[:depth] if folder else parts[:-1][:depth]
    return ["/".join([domain, *parts[:k]]) for k in range(len(parts) + 1)]


# ---- Domains ---------------------------------------------------------------------------------------------------------


def domain_counts(pages: Iterable[tuple[str, bool]]) -> dict[str, list[int]]:
    """{domain: [pages, kept pages]} of (url, kept) pairs; URLs without a host are left out."""
    counts: dict[str, list[int]] = {}
    for url, kept in pages:
        if domain := _segments(url)[0]:
            count = counts.setdefault(domain, [0, 0])
            count[0] += 1
            count[1] += bool(kept)
    return counts


def merge_domains(tables: Iterable[dict[str, list[int]]]) -> dict[str, list[int]]:
    """The sums of domain_counts of several shards."""
    merged: dict[str, list[int]] = {}
    for table in tables:
        for domain, (total, kept) in table.items():
            count = merged.setdefault(domain, [0, 0])
            count[0] += total
            count[1] += kept
    return merged


def math_domains(counts: dict[str, list[int]], share: float = 0.10, minimum: int = 1) -> list[str]:
    """Domains of at least `minimum` pages of which more than `share` were kept; most kept pages first."""
    found = [
        domain
        for domain, (total, kept) in counts.items()
        if total >= minimum and kept > share * total
    ]
    return sorted(found, key=lambda domain: (-counts[domain][1], domain))


# ---- Prefixes --------------------------------------------------------------------------------------------------------


@dataclass
class Prefix:
    """Counts of the pages under a URL prefix, and examples [(url, title)] of pages that were kept and of others.
    Prefix(**asdict(prefix)) is the same again, through JSON too."""

    total: int = 0
    kept: int = 0
    kept_examples: list[tuple[str, str]] = field(default_factory=list)
    other_examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.kept / self.total

    def keep_few(self, count: int) -> None:
        """Only the first examples in the order of their URLs' hashes: as good as random, and the same in any order of
        arrival."""

        def key(example: tuple[str, str]) -> tuple:
            return blake2b(example[0].encode("utf-8", "replace"), digest_size=8).digest(), example

        self.kept_examples = sorted(set(map(tuple, self.kept_examples)), key=key)[:count]
        self.other_examples = sorted(set(map(tuple, self.other_examples)), key=key)[:count]


def prefix_counts(
    pages: Iterable[tuple[str, bool, str]],
    domains: Iterable[str],
    depth: int = 2,
    examples: int = 3,
) -> dict[str, Prefix]:
    """{prefix: Prefix} of (url, kept, title) triples whose domain is among `domains`: all mathematical ones, or a part
    of them where memory is short."""
    wanted = set(domains)
    found: dict[str, Prefix] = {}
    for url, kept, title in pages:
        names = prefixes(url, depth)
        if names[0] not in wanted:
            continue
        for name in names:
            prefix = found.setdefault(name, Prefix())
            prefix.total += 1
            prefix.kept += bool(kept)
            some = prefix.kept_examples if kept else prefix.other_examples
            some.append((url, title))
            if len(some) > 50 + examples:
                prefix.keep_few(examples)
    for prefix in found.values():
        prefix.keep_few(examples)
    return found


def merge_prefixes(tables: Iterable[dict[str, Prefix]], examples: int = 3) -> dict[str, Prefix]:
    """The sums of prefix_counts of several shards."""
    merged: dict[str, Prefix] = {}
    for table in tables:
        for name, part in table.items():
            whole = merged.setdefault(name, Prefix())
            whole.total += part.total
            whole.kept += part.kept
            whole.kept_examples += part.kept_examples
            whole.other_examples += part.other_examples
            whole.keep_few(examples)
    return merged


@dataclass(frozen=True)
class Domain:
    """A mathematical domain and all of its prefixes, parents before children."""

    domain: str
    total: int
    kept: int
    prefixes: dict[str, Prefix]

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.prefixes:
            found.setdefault(name.rpartition("/")[0], []).append(name)
        return found

    def children(self, name: str) -> list[str]:
        """The prefixes one segment longer."""
        return self._children.get(name, [])

    def questions(self, minimum: int = 3, most: int = 20) -> list[str]:
        """The prefixes worth a person's look: at least `minimum` pages and one of them kept, the `most` with most kept
        pages. One whose pages all lie under a longer one gives way to that."""
        names = [
            name
            for name, prefix in self.prefixes.items()
            if prefix.total >= minimum
            and prefix.kept
            and all(self.prefixes[child].total < prefix.total for child in self.children(name))
        ]
        return sorted(sorted(names, key=lambda name: (-self.prefixes[name].kept, name))[:most])


def domain_table(
    counts: dict[str, list[int]], found: dict[str, Prefix], domains: Sequence[str]
) -> list[Domain]:
    """The domains, in the order given, with the prefixes found in them."""
    by_domain: dict[str, list[str]] = {}
    for name in found:
        by_domain.setdefault(name.partition("/")[0], []).append(name)
    return [
        Domain(
            domain,
            *counts[domain],
            {name: found[name] for name in sorted(by_domain.get(domain, []))},
        )
        for domain in domains
    ]


def describe(name: str, prefix: Prefix) -> str:
    """Lines for a person: counts, and examples marked + (kept) and - (not kept)."""
    lines = [f"{name}   {prefix.kept} of {prefix.total} pages kept ({100 * prefix.share:.0f} %)"]
    for sign, examples in (("+", prefix.kept_examples), ("-", prefix.other_examples)):
        lines += [f"    {sign} {url}   {' '.join(title.split())[:60]}" for url, title in examples]
    return "\n".join(lines)


def table_text(table: Sequence[Domain], minimum: int = 3, most: int = 20) -> str:
    """The whole table for a person: each domain with the prefixes worth a look and their examples."""
    lines = []
    for row in table:
        lines.append(
            f"{row.domain}: {row.kept} of {row.total} pages kept ({100 * row.kept / row.total:.0f} %)"
        )
        for name in row.questions(minimum, most):
            lines.append("  " + describe(name, row.prefixes[name]).replace("\n", "\n  "))
        lines.append("")
    return "\n".join(lines)


def table_rows(table: Sequence[Domain], minimum: int = 3, most: int = 20) -> list[dict]:
    """The same as plain objects, for a report: {domain, total, kept, prefixes: [{prefix, total, kept, ...}]}."""
    return [
        {
            "domain": row.domain,
            "total": row.total,
            "kept": row.kept,
            "prefixes": [
                {"prefix": name} | asdict(row.prefixes[name])
                for name in row.questions(minimum, most)
            ],
        }
        for row in table
    ]


# ---- Annotation ------------------------------------------------------------------------------------------------------

_NO = "# no: "  # how a prefix that was declined is remembered: as a comment


def _parse_prefix(text: str, where: str) -> str:
    """A prefix as written by a person, in the spelling of `prefixes`. Raises InputError."""
    host, _, path = _SCHEME.sub("", text, count=1).partition("/")
    host = base_url(host)
    problem = (
        "holds a space"
        if len(text.split()) > 1
        else "holds a query or fragment"
        if set("?#") & set(text)
        else "does not begin with a host"
        if not _HOST.fullmatch(host)
        else ""
    )
    if problem:
        raise InputError(
            f"{where}: {text[:80]!r} {problem}; write a URL prefix such as school.example/math"
        )
    return "/".join([host, *(part for part in path.split("/") if part)])


def read_annotations(path: str | Path) -> list[str]:
    """The URL prefixes of an annotation file, one a line, in order and once each. Scheme, "www." and slashes at the end
    do not matter; what follows "#" at the start of a line or after a space is a comment. Raises InputError."""
    return list(dict.fromkeys(name for name, yes in _decisions(path) if yes))


def _decisions(path: str | Path) -> list[tuple[str, bool]]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a file of URL prefixes"
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: not UTF-8 text; give a file of URL prefixes, one a line"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if line.startswith(_NO):
            found.append((line.removeprefix(_NO).strip(), False))
        elif text := re.split(r"(?:^|\s)#", line)[0].strip():
            found.append((_parse_prefix(text, where), True))
    return found


def annotate(
    table: Sequence[Domain],
    path: str | Path,
    ask: Callable[[str], str] = input,
    show: Callable[[str], None] = print,
    minimum: int = 3,
    most: int = 20,
) -> dict[str, int]:
    """Ask a person about the prefixes of the table (Domain.questions); each answer is in the file at `path` at once.

    Prefixes that the file decides already, or that lie under one it accepts, are not asked about; so the questionnaire
    can be left (q, Ctrl-C or end of input) and taken up again. Lines that were in the file stay. Returns counts of
    answers {yes, no, skip} and of the questions `left`. Raises InputError for a file with a bad line.
    """
    decisions = _decisions(path) if Path(path).exists() else []
    accepted, declined = [n for n, yes in decisions if yes], {n for n, yes in decisions if not yes}
    counts = dict(yes=0, no=0, skip=0, left=0)
    questions = [(row, name) for row in table for name in row.questions(minimum, most)]
    asking, shown = True, None
    for row, name in questions:
        if name in declined or under(accepted, [name])[0]:
            continue
        if asking:
            if row is not shown:
                show(f"\n{row.domain}: {row.kept} of {row.total} pages kept")
                shown = row
            show(describe(name, row.prefixes[name]))
            answer = _answer(ask)
            asking = answer != "q"
        if not asking:
            counts["left"] += 1
            continue
        if answer == "y":
            accepted.append(name)
        elif answer == "n":
            declined.add(name)
        counts[{"y": "yes", "n": "no", "s": "skip"}[answer]] += 1
        if answer != "s":
            _add_line(Path(path), name if answer == "y" else _NO + name)
    return counts


def _answer(ask: Callable[[str], str]) -> str:
    """y, n, s or q, asked for until it is one of them."""
    while True:
        try:
            answer = ask("Mathematics? [y]es, [n]o, [s]kip, [q]uit: ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            return "q"
        for word in ("yes", "no", "skip", "quit"):
            if answer and word.startswith(answer):
                return word[0]


def _add_line(path: Path, line: str) -> None:
    old = (
        path.read_text(encoding="utf-8-sig")
        if path.exists()
        else "# URL prefixes of mathematical pages\n"
    )
    with atomic_write(path) as file:
        file.write(old + "\n" * (bool(old) and not old.endswith("\n")) + line + "\n")


def auto_annotate(table: Sequence[Domain], share: float = 0.25, minimum: int = 3) -> list[str]:
    """The prefixes that a rule takes for mathematical, in place of a person: those with more than `share` of their
    pages kept. One is taken whole only if the same holds for each of its parts of `minimum` pages or more, that is the
    prefixes right below it and the pages in none of these; of a mixed site only the part with mathematics is taken.
    (A person reads the pages; a report of a run with this rule must say that none did.)"""
    chosen = []

    def good(total: int, kept: int) -> bool:
        return kept > share * total

    def whole(row: Domain, name: str) -> bool:
        prefix, below = row.prefixes[name], row.children(name)
        total = prefix.total - sum(row.prefixes[child].total for child in below)
        kept = prefix.kept - sum(row.prefixes[child].kept for child in below)
        return (
            good(prefix.total, prefix.kept)
            and (total < minimum or good(total, kept))
            and all(whole(row, child) for child in below if row.prefixes[child].total >= minimum)
        )

    def visit(row: Domain, name: str) -> None:
        prefix, below = row.prefixes[name], row.children(name)
        if prefix.total < minimum:
            return
        same = any(
            row.prefixes[child].total == prefix.total for child in below
        )  # the longer prefix says more
        if whole(row, name) and not same:
            chosen.append(name)
        else:
            for child in below:
                visit(row, child)

    for row in table:
        if row.domain in row.prefixes:
            visit(row, row.domain)
    return chosen


def write_annotations(path: str | Path, names: Iterable[str], comment: str) -> None:
    """An annotation file of these prefixes under a comment that says where they come from."""
    with atomic_write(path) as file:
        file.write(
            "".join(f"# {line}\n" for line in comment.splitlines())
            + "".join(f"{name}\n" for name in names)
        )


def under(names: Iterable[str], urls: Iterable[str]) -> list[bool]:
    """Which URLs lie under one of the prefixes. A look-up for each segment of a URL, however many prefixes there are.

    >>> under(["a.example/math"], ["http://www.a.example/math/1", "http://a.example/mathematics"])
    [True, False]
    """
    wanted = set(names)
    depths = {name.count("/") for name in wanted}
    result = []
    for url in urls:
        domain, parts, _ = _segments(url)
        result.append(
            any("/".join([domain, *parts[:k]]) in wanted for k in depths if k <= len(parts))
        )
    return result
