"""From collected pages to mathematical sites (paper 2.1): domains, URL prefixes, annotation.

A domain is the set of pages with the same base URL. It is mathematical if more than 10 % of its
pages were collected. A person then looks at the URL prefixes of these domains, with counts and
examples, and says which of them hold mathematics. Pages under these prefixes that were not
collected become positive examples of the next round.

    domain_counts, merge_domains    first pass over the shards: {domain: [pages, kept]}
    math_domains                    the 10 % rule
    prefix_counts, merge_prefixes   second pass, over mathematical domains: {prefix: Prefix}
    domain_table, table_text        what a person sees
    annotate, auto_annotate         the questionnaire, and a rule that replaces the person
    read_annotations, under         the annotation file, and which URLs it covers

A prefix is a host, or a host and whole segments of a path: "school.example/math" covers
school.example/math, /math/1 and /math?page=1, but not /mathematics. Shards can be merged in any
order, so the number of workers changes neither a count nor an example.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

from data.io import InputError, atomic_write
from data.mine.store import read_json
from data.mine.urls import SCHEME, base_url

_URL = re.compile(
    r"(?:[a-z][a-z0-9+.-]*://|//)?"  # scheme
    r"([^/?#]*)([^?#;]*)([?#;]?)",  # host, path, the character after the path
    re.IGNORECASE,
)
_HOST = re.compile(r"(?:[\w-]+\.)+[\w-]+")

DomainCounts = dict[str, list[int]]  # {domain: [pages, kept pages]}


# ---- Domains ---------------------------------------------------------------------------------


def _segments(url: str) -> tuple[str, list[str], bool]:
    """(domain, segments of the path, is the last segment a folder or followed by a query?).

    The domain is "" if the host has no dot.
    """
    url = url.strip()
    if not url.isprintable() or " " in url:  # white space, or characters that UTF-8 cannot hold
        url = re.sub(r"\s", "%20", url.encode("utf-8", "replace").decode())
    host, path, mark = _URL.match(url).groups()
    parts = [part for part in path.split("/") if part]
    return _domain(host), parts, mark == "?" or path.endswith("/")


@lru_cache(2**16)  # the same hosts come again and again
def _domain(host: str) -> str:
    domain = base_url("//" + host)
    return domain if _HOST.fullmatch(domain) else ""


def domain_counts(pages: Iterable[tuple[str, bool]]) -> DomainCounts:
    """{domain: [pages, kept pages]} of (url, kept) pairs. URLs without a host are left out.

    >>> domain_counts([("http://a.example/1", True), ("http://www.a.example/2", False)])
    {'a.example': [2, 1]}
    """
    counts: DomainCounts = {}
    for url, kept in pages:
        domain = _segments(url)[0]
        if domain:
            count = counts.setdefault(domain, [0, 0])
            count[0] += 1
            count[1] += bool(kept)
    return counts


def merge_domains(tables: Iterable[DomainCounts]) -> DomainCounts:
    """The sum of the domain_counts of several shards."""
    merged: DomainCounts = {}
    for table in tables:
        for domain, (total, kept) in table.items():
            count = merged.setdefault(domain, [0, 0])
            count[0] += total
            count[1] += kept
    return merged


def math_domains(counts: DomainCounts, share: float = 0.10, minimum: int = 1) -> list[str]:
    """Domains with at least `minimum` pages, of which more than `share` were kept.

    Domains with most kept pages come first.

    >>> math_domains({"a.example": [10, 1], "b.example": [10, 2]})
    ['b.example']
    """
    chosen = []
    for domain, (total, kept) in counts.items():
        if total >= minimum and kept > share * total:
            chosen.append(domain)

    def rank(domain: str) -> tuple:
        _, kept = counts[domain]
        return -kept, domain

    return sorted(chosen, key=rank)


# ---- Prefixes --------------------------------------------------------------------------------


def prefixes(url: str, depth: int = 2) -> list[str]:
    """The prefixes above a page: the domain, then up to `depth` segments of the path.

    The last segment names the page itself and is left out, unless a query follows: then only the
    query distinguishes pages.

    >>> prefixes("https://www.a.example/math/algebra/1.html")
    ['a.example', 'a.example/math', 'a.example/math/algebra']
    >>> prefixes("http://a.example/viewtopic?t=7")
    ['a.example', 'a.example/viewtopic']
    """
    domain, parts, folder = _segments(url)
    if not folder:
        parts = parts[:-1]
    parts = parts[:depth]
    return ["/".join([domain, *parts[:k]]) for k in range(len(parts) + 1)]


@dataclass
class Prefix:
    """Counts of the pages under a URL prefix, and examples (url, title) of kept and other pages.

    Prefix(**asdict(prefix)) is the same object again, also after a round trip through JSON.
    """

    total: int = 0
    kept: int = 0
    kept_examples: list[tuple[str, str]] = field(default_factory=list)
    other_examples: list[tuple[str, str]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.kept / self.total

    def keep_few(self, count: int) -> None:
        """Keep only `count` examples of each kind: the first in the order of a hash of the URL.

        This is as good as random, and does not depend on the order in which examples arrive.
        """

        self.kept_examples = _first_by_hash(self.kept_examples, count)
        self.other_examples = _first_by_hash(self.other_examples, count)


def _first_by_hash(examples: list, count: int) -> list[tuple[str, str]]:
    def key(example: tuple[str, str]) -> tuple:
        url = example[0].encode("utf-8", "replace")
        return blake2b(url, digest_size=8).digest(), example

    distinct = set(map(tuple, examples))  # from JSON they come as lists
    return sorted(distinct, key=key)[:count]


def prefix_counts(
    pages: Iterable[tuple[str, bool, str]],
    domains: Iterable[str],
    depth: int = 2,
    examples: int = 3,
) -> dict[str, Prefix]:
    """{prefix: Prefix} of (url, kept, title) triples, for the pages of these domains.

    `domains` are all mathematical domains, or some of them if memory is short.
    """
    wanted = set(domains)
    result: dict[str, Prefix] = {}
    for url, kept, title in pages:
        names = prefixes(url, depth)
        if names[0] not in wanted:
            continue
        for name in names:
            prefix = result.setdefault(name, Prefix())
            prefix.total += 1
            prefix.kept += bool(kept)
            shown = prefix.kept_examples if kept else prefix.other_examples
            shown.append((url, title))
            if len(shown) > 50 + examples:
                prefix.keep_few(examples)
    for prefix in result.values():
        prefix.keep_few(examples)
    return result


def read_prefixes(path: Path) -> dict[str, Prefix]:
    """The prefix_counts of a shard, from JSON."""
    return {name: Prefix(**fields) for name, fields in read_json(path).items()}


def merge_prefixes(tables: Iterable[dict[str, Prefix]], examples: int = 3) -> dict[str, Prefix]:
    """The sum of the prefix_counts of several shards."""
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


# ---- The table for a person ------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """A mathematical domain, with all its prefixes; a parent comes before its children."""

    domain: str
    total: int
    kept: int
    prefixes: dict[str, Prefix]

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for name in self.prefixes:
            children.setdefault(name.rpartition("/")[0], []).append(name)
        return children

    def children(self, name: str) -> list[str]:
        """The prefixes that are one segment longer."""
        return self._children.get(name, [])

    def same_as_child(self, name: str) -> bool:
        """Are all pages under this prefix also under a single longer prefix?"""
        total = self.prefixes[name].total
        return any(self.prefixes[child].total == total for child in self.children(name))

    def questions(self, minimum: int = 3, most: int = 20) -> list[str]:
        """The prefixes that a person should see.

        These have at least `minimum` pages, at least one of them kept, and there is no single
        longer prefix with the same pages. If there are more than `most`, those with most kept
        pages.
        """
        names = []
        for name, prefix in self.prefixes.items():
            if prefix.total >= minimum and prefix.kept and not self.same_as_child(name):
                names.append(name)
        names.sort(key=lambda name: (-self.prefixes[name].kept, name))
        return sorted(names[:most])


def domain_table(
    counts: DomainCounts, prefixes: dict[str, Prefix], domains: Sequence[str]
) -> list[Domain]:
    """A row for each of the domains, in this order, with the prefixes on it."""
    by_domain: dict[str, list[str]] = {}
    for name in prefixes:
        by_domain.setdefault(name.partition("/")[0], []).append(name)
    table = []
    for domain in domains:
        total, kept = counts[domain]
        names = sorted(by_domain.get(domain, []))
        chosen = {name: prefixes[name] for name in names}
        table.append(Domain(domain, total, kept, chosen))
    return table


def describe(name: str, prefix: Prefix) -> str:
    """Lines about a prefix: counts, and examples marked + (kept) and - (not kept)."""
    lines = [f"{name}   {prefix.kept} of {prefix.total} pages kept ({100 * prefix.share:.0f} %)"]
    for sign, examples in (("+", prefix.kept_examples), ("-", prefix.other_examples)):
        for url, title in examples:
            lines.append(f"    {sign} {url}   {' '.join(title.split())[:60]}")
    return "\n".join(lines)


def table_text(table: Sequence[Domain]) -> str:
    """The table as text: each domain with the prefixes that a person should see."""
    lines = []
    for row in table:
        share = f"{100 * row.kept / row.total:.0f} %"
        lines.append(f"{row.domain}: {row.kept} of {row.total} pages kept ({share})")
        for name in row.questions():
            text = describe(name, row.prefixes[name])
            lines.append(textwrap.indent(text, "  "))
        lines.append("")
    return "\n".join(lines)


def table_rows(table: Sequence[Domain]) -> list[dict]:
    """The same as JSON for the report: {domain, total, kept, prefixes: [{prefix, total, ...}]}."""
    rows = []
    for row in table:
        shown = [{"prefix": name} | asdict(row.prefixes[name]) for name in row.questions()]
        rows.append(
            {
                "domain": row.domain,
                "total": row.total,
                "kept": row.kept,
                "prefixes": shown,
            }
        )
    return rows


# ---- The annotation file ---------------------------------------------------------------------

_NO = "# no: "  # a declined prefix is remembered as a comment


def _parse_prefix(text: str, where: str) -> str:
    """A prefix that a person wrote, in the spelling of `prefixes`. Raises InputError."""
    host, _, path = SCHEME.sub("", text, count=1).partition("/")
    host = base_url(host)
    problem = ""
    if len(text.split()) > 1:
        problem = "contains a space"
    elif set("?#") & set(text):
        problem = "contains a query or fragment"
    elif not _HOST.fullmatch(host):
        problem = "does not begin with a host"
    if problem:
        raise InputError(
            f"{where}: {text[:80]!r} {problem}; write a URL prefix such as school.example/math"
        )
    return "/".join([host, *(part for part in path.split("/") if part)])


def read_annotations(path: str | Path) -> list[str]:
    """The URL prefixes of an annotation file, in order, without repetition.

    A line has one prefix. Scheme, "www." and slashes at the end do not matter. A "#" at the start
    of a line or after a space begins a comment. Raises InputError.
    """
    return list(dict.fromkeys(name for name, accepted in _decisions(path) if accepted))


def _decisions(path: str | Path) -> list[tuple[str, bool]]:
    """(prefix, accepted or declined) for each decision in an annotation file."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a file of URL prefixes"
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: not UTF-8 text; give a file of URL prefixes, one on a line"
        ) from None
    decisions = []
    for number, line in enumerate(lines, 1):
        text = re.split(r"(?:^|\s)#", line)[0].strip()
        if line.startswith(_NO):
            decisions.append((line.removeprefix(_NO).strip(), False))
        elif text:
            decisions.append((_parse_prefix(text, f"{path}:{number}"), True))
    return decisions


def write_annotations(path: str | Path, names: Iterable[str], comment: str) -> None:
    """Write an annotation file: a comment that says where the prefixes come from, the prefixes."""
    lines = [f"# {line}" for line in comment.splitlines()]
    with atomic_write(path) as file:
        for line in [*lines, *names]:
            file.write(f"{line}\n")


def under(names: Iterable[str], urls: Iterable[str]) -> list[bool]:
    """Is each URL under one of the prefixes? The cost does not depend on their number.

    >>> under(["a.example/math"], ["http://www.a.example/math/1", "http://a.example/mathematics"])
    [True, False]
    """
    wanted = set(names)
    depths = {name.count("/") for name in wanted}
    result = []
    for url in urls:
        domain, parts, _ = _segments(url)
        candidates = ("/".join([domain, *parts[:k]]) for k in depths if k <= len(parts))
        result.append(any(name in wanted for name in candidates))
    return result


# ---- Annotation ------------------------------------------------------------------------------


def annotate(
    table: Sequence[Domain],
    path: str | Path,
    ask: Callable[[str], str] = input,
    show: Callable[[str], None] = print,
) -> dict[str, int]:
    """Ask a person about the prefixes of the table; save each answer in the file `path` at once.

    There is no question about a prefix that the file decides already, or that is under an accepted
    prefix. So a person can leave the questionnaire (q, Ctrl-C or end of input) and continue later.
    Other lines of the file stay.

    Returns counts of the answers {yes, no, skip} and of the questions `left`. Raises InputError for
    a file with a bad line.
    """
    accepted, declined = [], set()
    for name, is_accepted in _decisions(path) if Path(path).exists() else []:
        if is_accepted:
            accepted.append(name)
        else:
            declined.add(name)
    counts = dict(yes=0, no=0, skip=0, left=0)
    asking = True
    for row in table:
        is_shown = False
        for name in row.questions():
            if name in declined or under(accepted, [name])[0]:
                continue
            if asking:
                if not is_shown:
                    show(f"\n{row.domain}: {row.kept} of {row.total} pages kept")
                    is_shown = True
                show(describe(name, row.prefixes[name]))
                answer = _read_answer(ask)
                asking = answer != "quit"
            if not asking:
                counts["left"] += 1
                continue
            counts[answer] += 1
            if answer == "yes":
                accepted.append(name)
                _add_line(Path(path), name)
            elif answer == "no":
                declined.add(name)
                _add_line(Path(path), _NO + name)
    return counts


def _read_answer(ask: Callable[[str], str]) -> str:
    """Ask until the answer is yes, no, skip or quit, or the beginning of such a word."""
    while True:
        try:
            answer = ask("Mathematics? [y]es, [n]o, [s]kip, [q]uit: ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            return "quit"
        for word in ("yes", "no", "skip", "quit"):
            if answer and word.startswith(answer):
                return word


def _add_line(path: Path, line: str) -> None:
    text = "# URL prefixes of mathematical pages\n"
    if path.exists():
        text = path.read_text(encoding="utf-8-sig")
    if text and not text.endswith("\n"):
        text += "\n"
    with atomic_write(path) as file:
        file.write(f"{text}{line}\n")


def auto_annotate(table: Sequence[Domain], share: float = 0.25, minimum: int = 3) -> list[str]:
    """Choose the mathematical prefixes by a rule instead of by a person.

    A prefix is chosen if more than `share` of its pages were kept, and if the same is true for each
    of its parts with at least `minimum` pages. The parts are the prefixes directly below, and the
    pages that are in none of them. So only the mathematical part of a mixed site is chosen. (A
    person reads the pages; a report of a run with this rule must say that nobody did.)
    """
    chosen = []

    def is_good(total: int, kept: int) -> bool:
        return kept > share * total

    def is_whole(row: Domain, name: str) -> bool:
        """Does the rule hold for this prefix and all its parts?"""
        prefix = row.prefixes[name]
        below = [(child, row.prefixes[child]) for child in row.children(name)]
        total = prefix.total - sum(part.total for _, part in below)
        kept = prefix.kept - sum(part.kept for _, part in below)
        if not is_good(prefix.total, prefix.kept) or (
            total >= minimum and not is_good(total, kept)
        ):
            return False
        return all(is_whole(row, child) for child, part in below if part.total >= minimum)

    def visit(row: Domain, name: str) -> None:
        if row.prefixes[name].total < minimum:
            return
        if is_whole(row, name) and not row.same_as_child(name):
            chosen.append(name)
        else:
            for child in row.children(name):
                visit(row, child)

    for row in table:
        if row.domain in row.prefixes:
            visit(row, row.domain)
    return chosen
