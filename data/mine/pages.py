"""Web pages of a crawl: files to {url, text, lang, date}, and HTML to text that keeps the mathematics (paper 2.1).

fastwarc and resiliparse parse records and HTML (pip install fastwarc resiliparse). Two things are ours. Where a record
of a file ends is found here, as one that is damaged must not take those after it with it. And formulas become LaTeX
before the text of a page is taken: text extraction knows nothing of script elements, attributes and MathML, and would
drop or flatten them.
"""

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from html import escape, unescape
from urllib.parse import unquote, unquote_plus, urlsplit

import numpy as np

from data.io import InputError
from data.mine.formulas import asciimath, attribute, mathml, normal_delimiters, tidy

try:
    from fastwarc import WarcRecord
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
    from resiliparse.parse.html import HTMLTree
except ImportError:  # said where it is first needed
    HTMLTree = None

# --- HTML to text -------------------------------------------------------------------------------------------------

# Resiliparse's own choice of the main content takes more than twice as long and loses formulas, such as those in lists.
# Left out here is what pages themselves mark as navigation and the like: not header and form, which often hold the
# title or the whole page.
_BOILERPLATE = [
    "nav",
    "footer",
    "aside",
    ".navbar",
    ".footer",
    ".sidebar",
]  # each takes 1 to 3 % of the time
_RENDERED = [
    ".MathJax_Preview",
    ".MathJax",
    ".MathJax_Display",
    ".MathJax_CHTML",
    ".MathJax_SVG",
    ".MathJax_SVG_Display",
]  # what MathJax 2 shows beside its scripts
# What is sought has a largest size, so that no page takes time that grows with its square.
_MATH = re.compile(rb"<(math\b[^>]{0,9999}+)>((?:[^<]++|<(?!/?math\b))*+)</math>")
_SCRIPT = re.compile(
    rb"<(script\b(?=[^>]{0,999}\bmath/)[^>]{0,1999}+)>((?:[^<]++|<(?!/?script\b))*+)</script>"
)
_ANNOTATION = re.compile(r"annotation\b([^>]{0,999}+)>((?:[^<]++|<(?!/))*+)</")
_TEX = re.compile(r"\b(?:tex|TeX|LaTeX|latex)\b")
_IMAGE_SOURCES = (
    "latex.php",
    "codecogs.com",
    "mathtex",
    "mimetex",
    "equation?tex=",
    "latex?",
    "/media/math/render/",
)
_IMAGE_CLASS = re.compile(r"(?:^|\s)(?:tex|latex|math|mathjax|mwe-math-fallback\S*)(?:\s|$)", re.I)
_DISPLAYED = re.compile(r"""display=["']?block|mode\s*=\s*["']?display|fallback-image-display""")
_ASCIIMATH = (
    b"ASCIIMathML",
    b"AsciiMath",
    b"asciimath",
    b"AM_CHTML",
    b"AM_HTMLorMML",
    b"AM_SVG",
)  # what loads it
_NEWLINES_3 = re.compile("\n\n\n+")
_BACKTICKS = re.compile(r"`([^`\n]{1,500})`")


class NotACrawl(InputError):
    """A file of none of the kinds that read_pages reads."""


def _needs_libraries() -> None:
    if HTMLTree is None:
        raise InputError(
            "reading web pages needs fastwarc and resiliparse: pip install fastwarc resiliparse"
        )


def _of_math(tag: str, inside: str) -> str:
    """LaTeX of a math element: its author's, where it is given along with it."""
    for note in _ANNOTATION.finditer(inside):
        if _TEX.search(note[1]):
            return unescape(note[2])
    return attribute(tag, "alttext") or mathml(inside)


def _of_image(tag: str) -> str:
    """LaTeX that an image was made from: from its address, or its alternative text. "" for an image of another kind."""
    source = attribute(tag, "src") or ""
    if any(address in source for address in _IMAGE_SOURCES):
        query = source.partition("?")[2]
        values = {
            key: value
            for key, _, value in (part.partition("=") for part in query.split("&"))
            if value
        }
        latex = unquote_plus(values.get("latex") or values.get("tex") or values.get("chl") or "")
        if not latex and re.search(r"codecogs|mathtex|mimetex|latex\?", source):
            latex = unquote(query)
        return latex or attribute(tag, "alt") or ""
    return (
        (attribute(tag, "alt") or "") if _IMAGE_CLASS.search(attribute(tag, "class") or "") else ""
    )


def _with_formulas(html: bytes) -> tuple[bytes, list[str] | None]:
    """HTML in which formulas in elements, scripts and images have become text, and the selectors of what shows the
    same formulas once more; None where the page names neither mathematics nor LaTeX. That is done before the page is
    parsed, as MathML and the like is much of what there would be to parse, and on bytes, which are searched faster."""
    between = html.split(b"math")  # one pass over the page, after which most are done
    if len(between) == 1 and b"latex" not in html:
        return html, None
    before, after = {part[-1:] for part in between[:-1]}, {part[:1] for part in between[1:]}

    def put(latex: str, tag: str) -> bytes:
        latex = escape(tidy(latex), quote=False)
        if not latex:
            return b" "
        display = "display" in tag and _DISPLAYED.search(tag)
        return (f"<br>$${latex}$$<br>" if display else f"${latex}$").encode()

    def script(match: re.Match) -> bytes:
        tag, source = match[1].decode(), match[2].decode()
        read = mathml if "math/mml" in tag else asciimath if "math/asciimath" in tag else str
        return put(read(source), tag)

    def element(match: re.Match) -> bytes:
        tag = match[1].decode()
        return put(_of_math(tag, match[2].decode()), tag)

    page, shown = html, []
    if b"/" in after:
        page, count = _SCRIPT.subn(script, page)
        shown += _RENDERED if count else []
    if b":" in before:  # with the prefix of its namespace
        page = re.sub(rb"<(/?)\w+:math\b", rb"<\1math", page)
    if b"<" in before or b":" in before:
        page = _MATH.sub(element, page)
        if b"katex-mathml" in page:
            shown.append(".katex-html")

    doubled = (
        b"-" in before and b"mwe-math-mathml" in html
    )  # images of this kind, whose math elements are there too
    pieces, done, at = [], 0, page.find(b"<img")
    while at >= 0 and (end := page.find(b">", at)) >= 0:
        tag = page[at + 1 : end]
        if (b"tex" in tag or b"math" in tag) and not (doubled and b"mwe-math" in tag):
            tag = tag.decode()
            if latex := _of_image(tag):
                pieces += page[done:at], put(latex, tag)
                done = end + 1
        at = page.find(b"<img", end)
    return b"".join([*pieces, page[done:]]) if pieces else page, shown


def _decoded(html: bytes | str, encoding: str | None) -> tuple[str, bytes]:
    """A page, and the same as UTF-8."""
    if isinstance(html, bytes):
        if b"\x1b" not in html and not (encoding or "").lower().startswith(
            "utf-16"
        ):  # not told from UTF-8 by bytes
            html = html.removeprefix(b"\xef\xbb\xbf")
            try:
                return (
                    html.decode(),
                    html,
                )  # what is valid as UTF-8 is not anything else, whatever is declared
            except UnicodeDecodeError:
                pass
        encoding = map_encoding_to_html5(
            encoding or detect_encoding(html, from_html_meta=True) or "utf-8"
        )
        html = bytes_to_str(html, encoding, "replace")
    source = html.encode("utf-8", "replace")
    return source.decode(), source  # a string may hold half of a surrogate pair


def _extract(html: bytes | str, encoding: str | None) -> tuple[str, str]:
    """(text, declared language) of a page."""
    html, source = _decoded(html, encoding)
    page, shown = _with_formulas(source)
    tree = (
        html if page is source else page.decode()
    )  # parsing it is faster as a part of the extraction
    if shown is not None and b"tex=" in page and (b"data-latex=" in page or b"data-tex=" in page):
        tree = HTMLTree.parse(tree)
        for node in tree.document.query_selector_all("[data-latex], [data-tex]").values():
            latex = tidy(node.getattr("data-latex") or node.getattr("data-tex") or "")
            node.replace_with(tree.create_text_node(f"${latex}$" if latex else " "))
    text = extract_plain_text(tree, skip_elements=_BOILERPLATE + (shown or []), alt_texts=False)
    if not text or text.isspace():  # the whole page stands in something of the kind
        text = extract_plain_text(tree, skip_elements=shown or [], alt_texts=False)
    if "`" in text and _BACKTICKS.search(text) and any(name in source for name in _ASCIIMATH):
        text = _BACKTICKS.sub(lambda match: f"${asciimath(match[1])}$", text)
    text = normal_delimiters(text)
    if "\n\n\n" in text:
        text = _NEWLINES_3.sub("\n\n", text)
    at = html.find("<html")
    begin = html[at : html.find(">", at)] if at >= 0 else ""
    return text.strip(), attribute(begin, "lang") or attribute(begin, "xml:lang") or ""


def html_text(html: bytes | str, encoding: str | None = None) -> str:
    """The text of a page: lines, paragraphs with an empty line between them, formulas as LaTeX in $...$ or $$...$$.

    Kept as formulas are LaTeX in the text (whatever is around it) and in attributes (data-latex, data-tex), scripts of
    MathJax, annotations and attributes beside MathML, MathML itself, AsciiMath (between backticks only where the page
    loads it), and images made from LaTeX. Left out are scripts, styles and what a page marks as navigation.
    `encoding` is that of bytes; without one it is what the page says, or what its bytes look like.
    Raises InputError where resiliparse is not installed."""
    _needs_libraries()
    return _extract(html, encoding)[0]


def language(text: str, declared: str | None = "") -> str:
    """ "zh", "ja" or "ko" by the script of the text, otherwise the first part of what the page declares ("en-GB" is
    "en"), or "". A fifth of what is not space has to be of the script: formulas and markup are in Latin letters."""
    if not text.isascii():
        codes = np.frombuffer(text.encode("utf-16-le", "replace"), "<u2")
        visible = max(1, int((codes > 32).sum()))
        kana, hangul, han = (
            int(((codes >= low) & (codes <= high)).sum())
            for low, high in ((0x3040, 0x30FF), (0xAC00, 0xD7AF), (0x3400, 0x9FFF))
        )
        if kana + hangul + han > 0.2 * visible:
            return "ko" if hangul > kana + han else "ja" if kana > 0.1 * (kana + han) else "zh"
    first = re.match(r"[a-z]{2,3}(?![a-z])", (declared or "").strip().lower())
    return _THREE_LETTERS.get(first[0], first[0]) if first else ""


_THREE_LETTERS = {
    "eng": "en",
    "zho": "zh",
    "jpn": "ja",
    "kor": "ko",
    "deu": "de",
    "fra": "fr",
    "spa": "es",
    "rus": "ru",
    "por": "pt",
    "ita": "it",
    "pol": "pl",
    "nld": "nl",
}


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def base_url(url: str) -> str:
    """The host by which pages are grouped into domains (2.1): lower case, without scheme, user, port and "www.", or ""
    where there is none."""
    url = url.strip().strip("<>")
    try:
        host = urlsplit(url if _SCHEME.match(url) else "//" + url.lstrip("/")).hostname or ""
    except ValueError:  # brackets that are no IPv6 address
        return ""
    return host.rstrip(".").removeprefix("www.")


# --- Files to pages -----------------------------------------------------------------------------------------------

_READ, _PIECE = 2**16, 2**20  # bytes read at once, and handed on at once
_HEAD, _LARGEST = 2**15, 2**25  # of a record's header, and of what follows it, at most
_MEMBER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")  # how a gzip member begins
_WARC = re.compile(rb"WARC/\d\.\d\r?\n")
_WARC_HEAD = re.compile(rb"WARC/\d\.\d\r?\n((?:(?!WARC/\d|\r?\n)[^\n]*+\n)*+)\r?\n")
_ARC = re.compile(rb"(?<!\S)([a-z]+:\S+) \S+ (\d{14}) \S+ (?:[^\r\n]* )?(\d+)\r?\n")
_ENDING, _NEWLINES = re.compile(rb"\r?\n\r?\n"), re.compile(rb"[\r\n]*")
_JSONL = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*["}]')
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def _pieces(file) -> Iterator[bytes | str]:
    """The bytes of a file, decompressed where it is gzip. In the place of bytes that are damaged or missing stands the
    word for it, "malformed" or "truncated". After damage it goes on with the next gzip member."""
    data = file.read(_READ)
    if not _MEMBER.match(data):
        while data:
            yield data
            data = file.read(_PIECE)
        return
    sound = True
    while data:
        inflate, held, size = zlib.decompressobj(31), [], 0
        seen = data  # where the next member is looked for, should this one be damaged
        try:
            while data:
                held.append(inflate.decompress(data))
                size += len(held[-1])
                if inflate.eof:
                    break
                if size > _PIECE:
                    yield b"".join(held)
                    held, size = [], 0
                data = file.read(_READ)
                seen = seen[-2 * _READ :] + data
        except zlib.error:  # `held` is dropped: a member's checksum comes at its end
            if sound:
                yield "malformed"
            sound = False
            while not (found := _MEMBER.search(seen, 1)) and (more := file.read(_READ)):
                seen = seen[-4:] + more
            data = seen[found.start() :] if found else b""
            continue
        if held:
            yield b"".join(held)
        if not inflate.eof:
            yield "truncated"
            return
        sound = True
        data = inflate.unused_data.lstrip(b"\0") or file.read(_READ).lstrip(
            b"\0"
        )  # zeros are padding


class _Stream:
    """Pieces as bytes to be read from `at` on, up to the end of the file or to a fault, after which `go_on` goes on."""

    def __init__(self, pieces: Iterator[bytes | str]):
        self._pieces, self.data, self.at, self.fault = (
            pieces,
            b"",
            0,
            None,
        )  # fault: "" is the end of the file

    def fill(self, size: int) -> bool:
        """Whether there are `size` bytes from `at` on."""
        missing = size - (len(self.data) - self.at)
        if missing > 0 and self.fault is None:
            parts = [self.data[self.at :]]
            while missing > 0 and self.fault is None:
                piece = next(self._pieces, "")
                if isinstance(piece, str):
                    self.fault = piece
                else:
                    parts.append(piece)
                    missing -= len(piece)
            self.data, self.at = b"".join(parts), 0
        return missing <= 0

    def seek(self, begin: re.Pattern) -> bool:
        """Go to the next place behind `at` that `begin` matches, or to the end."""
        self.at += 1
        while not (found := begin.search(self.data, self.at)):
            self.at = max(self.at, len(self.data) - 4096)  # what is looked for may have begun there
            if not self.fill(len(self.data) - self.at + 1):
                self.at = len(self.data)
                return False
        self.at = found.start()
        return True

    def go_on(self) -> None:
        self.data, self.at, self.fault = b"", 0, None


def _warc_head(data: bytes, at: int) -> tuple[dict, int, int] | None:
    """(fields with names in lower case, bytes of the header, bytes of what follows) of a WARC record that is sound."""
    found = _WARC_HEAD.match(data, at, at + _HEAD)
    if not found:
        return None
    lines = found[1].decode("utf-8", "replace").splitlines()
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    length = fields.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        return None
    return fields, found.end() - at, int(length)


def _arc_head(data: bytes, at: int) -> tuple[dict, int, int] | None:
    """The same of an ARC record, as the fields that a WARC record would have."""
    match = _ARC.match(data, at)
    if not match:
        return None
    url, date, length = (group.decode("utf-8", "replace") for group in match.groups())
    kind = "warcinfo" if url.startswith("filedesc:") else "response"
    date = f"{date[:4]}-{date[4:6]}-{date[6:8]}"
    return (
        {"warc-type": kind, "warc-target-uri": url, "warc-date": date},
        match.end() - at,
        int(length),
    )


def _records(
    stream: _Stream, begin: re.Pattern, head, counts: Counter
) -> Iterator[tuple[dict, bytes]]:
    """(fields, block) of every sound record: one whose block is there and followed by two newlines, a record or the
    end. The others are counted, and what next looks like the beginning of a record is gone to."""
    while True:
        stream.fill(_HEAD)
        if stream.at == len(stream.data):
            if not stream.fault:
                return
            counts.update(["records", stream.fault])
            stream.go_on()
            continue
        whole, found = True, head(stream.data, stream.at)
        if found and found[2] <= _LARGEST:
            fields, start, size = found
            whole = stream.fill(start + size)
            stream.fill(start + size + _HEAD)
            end = stream.at + start + size
            after = _NEWLINES.match(stream.data, end).end()
            ended = (
                _ENDING.match(stream.data, end)
                or after == len(stream.data)
                or begin.match(stream.data, after)
            )
            if whole and ended:
                counts["records"] += 1
                block = stream.data[end - size : end]
                stream.at = after
                yield fields, block
                continue
        if stream.seek(begin):
            counts.update(["records", "malformed"])
        elif not stream.fault:  # otherwise the fault is counted
            counts.update(["records", "malformed" if whole else "truncated"])


def _page(url: str, text: str, lang: str, date: str) -> dict:
    return {
        "url": url,
        "text": text,
        "lang": lang,
        "date": date if _ISO_DATE.fullmatch(date) else "",
    }


def _of_response(block: bytes) -> tuple[str, str] | str:
    """(text, language) of an HTTP response, or the word under which it is counted."""
    head = (
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
    )
    try:
        record = WarcRecord.from_bytes(head + b"Content-Length: %d\r\n\r\n" % len(block) + block)
        record.parse_http(auto_decode="all", quirks_mode=True)
        status, kind, charset = (
            record.http_headers.status_code,
            record.http_content_type,
            record.http_charset,
        )
        if status is None:
            return "malformed"
        if status != 200:
            return "not_ok"
        if (kind or "").lower() not in ("text/html", "application/xhtml+xml"):
            return "not_html"
        html = record.reader.read()
    except (OSError, ValueError):
        return "malformed"
    if not html.strip():
        return "empty"
    text, declared = _extract(html, charset)
    return (text, language(text, declared)) if text else "empty"


def _archive_pages(stream: _Stream, begin: re.Pattern, head, counts: Counter) -> Iterator[dict]:
    for fields, block in _records(stream, begin, head, counts):
        kind = fields.get("warc-type")
        if kind not in ("response", "conversion"):
            counts["other"] += 1
            continue
        if fields.get("warc-truncated"):
            counts["truncated"] += 1
            continue
        if kind == "response":
            found = (
                _of_response(block)
                if fields.get("warc-target-uri", "").strip("<>")[:4] == "http"
                else "not_html"
            )
        else:
            text = block.decode("utf-8", "replace").strip()
            declared = fields.get("warc-identified-content-language")
            found = (text, language(text, declared)) if text else "empty"
        if isinstance(found, str):
            counts[found] += 1
            continue
        counts["pages"] += 1
        yield _page(
            fields.get("warc-target-uri", "").strip("<>"), *found, fields.get("warc-date", "")[:10]
        )


def _jsonl_pages(stream: _Stream, counts: Counter) -> Iterator[dict]:
    """A page a line: text, or html; url, lang and date, of which any may be missing, also under the names and in the
    "metadata" that other corpora use."""
    while True:
        size, long = 0, False
        while (end := stream.data.find(b"\n", stream.at + size)) < 0:
            size = len(stream.data) - stream.at
            if size > _LARGEST:  # no page; it is gone over without being held
                stream.at, size, long = len(stream.data), 0, True
            if not stream.fill(size + 1):
                break
        line = stream.data[stream.at : end if end >= 0 else len(stream.data)]
        stream.at += len(line) + 1
        if end < 0 and stream.fault:  # the line that it cut through is counted with it
            counts.update(["records", stream.fault])
            stream.go_on()
            continue
        if long or len(line) > _LARGEST:
            counts.update(["records", "malformed"])
        elif line.strip():
            counts["records"] += 1
            try:
                found = _of_row(json.loads(line.decode("utf-8-sig")))
            except InputError:  # packages are missing
                raise
            except (ValueError, RecursionError):
                found = "malformed"
            if isinstance(found, str):
                counts[found] += 1
            else:
                counts["pages"] += 1
                yield found
        if end < 0:
            return


def _of_row(row) -> dict | str:
    if not isinstance(row, dict):
        return "malformed"
    more = row["metadata"] if isinstance(row.get("metadata"), dict) else {}

    def field(*names: str) -> str:
        values = (place.get(name) for place in (row, more) for name in names)
        value = next((value for value in values if isinstance(value, str) and value), "")
        return value.encode(
            "utf-8", "replace"
        ).decode()  # half of a surrogate pair cannot be written again

    text = field("text", "raw_content", "content")
    if not text and (html := field("html")):
        text = html_text(html)
    text = text.strip()
    if not text:
        return "empty"
    lang = language(text, field("lang", "language"))
    return _page(
        field("url"), text, lang, field("date", "created", "date_download", "timestamp")[:10]
    )


def read_pages(path: str | os.PathLike, counts: Counter) -> Iterator[dict]:
    """Pages {url, text, lang, date} of a WARC, WET, ARC or JSONL file, gzip or not, as its content says.

    `counts` is added to: "records" of the file, and what became of each: "pages" that are given out, "other" (no
    response and no text of one), "not_ok" (a status but 200), "not_html", "truncated" (also by the crawler),
    "malformed" or "empty" (no text). Nothing in a record is fatal. Raises InputError, naming the file, where it cannot
    be read or the packages for it are missing; NotACrawl where it is of another kind. An empty file has no pages."""
    try:
        with open(path, "rb") as file:
            stream = _Stream(_pieces(file))
            while (
                not stream.fill(_HEAD) and len(stream.data) < 20 and stream.fault
            ):  # too little to tell the kind
                counts.update(["records", stream.fault])
                stream.go_on()
            if not stream.data:
                return
            if _JSONL.match(stream.data):
                yield from _jsonl_pages(stream, counts)
                return
            stream.fill(_PIECE)
            for begin, head in ((_WARC, _warc_head), (_ARC, _arc_head)):
                if begin.search(stream.data):  # its first record may be damaged
                    _needs_libraries()
                    yield from _archive_pages(stream, begin, head, counts)
                    return
            raise NotACrawl(
                f"{path}: neither WARC, WET, ARC nor JSONL; give files of a crawl, or pages as JSONL"
            )
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the path of a file of a crawl"
        ) from None
