"""Pages {url, text, lang, date} from the files of a crawl: WARC, WET, ARC or JSONL (paper 2.1).

fastwarc parses HTTP responses (pip install fastwarc). This file finds where the records begin and
end, so that a damaged record does not take the records after it with it.
"""

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

from data.io import InputError
from data.mine.html_text import extract, html_text, language, needs_libraries

try:
    from fastwarc import WarcRecord
except ImportError:  # needs_libraries reports it when a page must be read
    WarcRecord = None

_READ, _PIECE = 2**16, 2**20  # bytes to read at a time, and bytes to pass on at a time
_HEAD, _LARGEST = 2**15, 2**25  # maximum bytes of a record's header, and of its content
_MEMBER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")  # the beginning of a gzip member
_WARC = re.compile(rb"WARC/\d\.\d\r?\n")
_WARC_HEAD = re.compile(rb"WARC/\d\.\d\r?\n((?:(?!WARC/\d|\r?\n)[^\n]*+\n)*+)\r?\n")
_ARC = re.compile(rb"(?<!\S)([a-z]+:\S+) \S+ (\d{14}) \S+ (?:[^\r\n]* )?(\d+)\r?\n")
_ENDING, _NEWLINES = re.compile(rb"\r?\n\r?\n"), re.compile(rb"[\r\n]*")
_JSONL = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*["}]')
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d")

# A record's header: (fields with lower-case names, bytes of the header, bytes of the content).
Head = tuple[dict, int, int]


class NotACrawl(InputError):
    """A file of a kind that read_pages does not read."""


def read_pages(path: str | os.PathLike, counts: Counter) -> Iterator[dict]:
    """Yield the pages of a WARC, WET, ARC or JSONL file. The content decides the kind and gzip.

    Adds to `counts`: the "records" of the file, and what became of each of them. "pages" were
    yielded. The others are "other" (no response, and no text of a response), "not_ok" (the status
    is not 200), "not_html", "truncated" (also by the crawler), "malformed" or "empty" (no text). No
    record stops the reading.

    Raises InputError, which names the file, if it cannot be read or if packages are missing, and
    NotACrawl if it is of another kind. An empty file has no pages.
    """
    try:
        with open(path, "rb") as file:
            stream = _Stream(_pieces(file))
            # Damage at the beginning may leave too few bytes to tell the kind: skip it.
            while not stream.fill(_HEAD) and len(stream.data) < 20 and stream.fault:
                counts.update(["records", stream.fault])
                stream.resume()
            if not stream.data:
                return
            if _JSONL.match(stream.data):
                yield from _jsonl_pages(stream, counts)
                return
            stream.fill(_PIECE)
            for begin, read_head in ((_WARC, _warc_head), (_ARC, _arc_head)):
                if begin.search(stream.data):  # not match: the first record may be damaged
                    needs_libraries(WarcRecord)
                    yield from _archive_pages(_records(stream, begin, read_head, counts), counts)
                    return
            raise NotACrawl(
                f"{path}: not WARC, WET, ARC or JSONL; give files of a crawl, or pages as JSONL"
            )
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the path of a file of a crawl"
        ) from None


# ---- Bytes -----------------------------------------------------------------------------------


def _pieces(file) -> Iterator[bytes | str]:
    """Yield the bytes of a file, decompressed if it is gzip.

    Where bytes are damaged or missing, yields the word "malformed" or "truncated". After damage,
    reading continues with the next gzip member.
    """
    data = file.read(_READ)
    if not _MEMBER.match(data):
        while data:
            yield data
            data = file.read(_PIECE)
        return

    intact = True
    while data:
        # Decompress a member. Keep its last piece until the checksum at its end is verified.
        inflate, kept, size = zlib.decompressobj(31), [], 0
        recent = data  # compressed bytes in which to look for the next member after damage
        try:
            while data:
                kept.append(inflate.decompress(data))
                size += len(kept[-1])
                if inflate.eof:
                    break
                if size > _PIECE:
                    yield b"".join(kept)
                    kept, size = [], 0
                data = file.read(_READ)
                recent = recent[-2 * _READ :] + data
        except zlib.error:
            if intact:
                yield "malformed"
            intact = False
            while not (match := _MEMBER.search(recent, 1)) and (more := file.read(_READ)):
                recent = recent[-4:] + more
            data = recent[match.start() :] if match else b""
            continue
        if kept:
            yield b"".join(kept)
        if not inflate.eof:
            yield "truncated"
            return
        intact = True
        # Zeros between members are padding.
        data = inflate.unused_data.lstrip(b"\0") or file.read(_READ).lstrip(b"\0")


class _Stream:
    """Pieces as bytes: `data` from index `at` on, up to a fault or the end of the file.

    `fault` is None, or the word for the fault, or "" at the end of the file.
    """

    def __init__(self, pieces: Iterator[bytes | str]):
        self._pieces = pieces
        self.data, self.at = b"", 0
        self.fault: str | None = None

    def fill(self, size: int) -> bool:
        """Read until there are `size` bytes from `at` on. Returns False if there are fewer."""
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
        """Move to the next match of `begin` after `at`. Without a match, move to the end."""
        self.at += 1
        while not (match := begin.search(self.data, self.at)):
            self.at = max(self.at, len(self.data) - 4096)  # a match may have begun there
            if not self.fill(len(self.data) - self.at + 1):
                self.at = len(self.data)
                return False
        self.at = match.start()
        return True

    def resume(self) -> None:
        """Continue after a fault."""
        self.data, self.at, self.fault = b"", 0, None


# ---- Records of WARC and ARC files -----------------------------------------------------------


def _warc_head(data: bytes, at: int) -> Head | None:
    """The header of a WARC record, or None if it is damaged."""
    match = _WARC_HEAD.match(data, at, at + _HEAD)
    if not match:
        return None
    fields = {}
    for line in match[1].decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    length = fields.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        return None
    return fields, match.end() - at, int(length)


def _arc_head(data: bytes, at: int) -> Head | None:
    """The header of an ARC record, with the fields of a WARC record, or None if it is damaged."""
    match = _ARC.match(data, at)
    if not match:
        return None
    url, date, length = (group.decode("utf-8", "replace") for group in match.groups())
    fields = {
        "warc-type": "warcinfo" if url.startswith("filedesc:") else "response",
        "warc-target-uri": url,
        "warc-date": f"{date[:4]}-{date[4:6]}-{date[6:8]}",
    }
    return fields, match.end() - at, int(length)


def _records(
    stream: _Stream,
    begin: re.Pattern,
    read_head: Callable[[bytes, int], Head | None],
    counts: Counter,
) -> Iterator[tuple[dict, bytes]]:
    """Yield (fields, content) of every intact record.

    The content of an intact record is complete, and two newlines, a record or the end follow it.
    Other records are counted, and reading continues where the next record seems to begin.
    """
    while True:
        stream.fill(_HEAD)
        if stream.at == len(stream.data):
            if not stream.fault:
                return
            counts.update(["records", stream.fault])
            stream.resume()
            continue
        is_complete, head = True, read_head(stream.data, stream.at)
        if head and head[2] <= _LARGEST:
            fields, start, size = head
            is_complete = stream.fill(start + size)
            stream.fill(start + size + _HEAD)
            end = stream.at + start + size
            after = _NEWLINES.match(stream.data, end).end()
            is_ended = (
                _ENDING.match(stream.data, end)
                or after == len(stream.data)
                or begin.match(stream.data, after)
            )
            if is_complete and is_ended:
                counts["records"] += 1
                content = stream.data[end - size : end]
                stream.at = after
                yield fields, content
                continue
        # A damaged record: go to the next one.
        if stream.seek(begin):
            counts.update(["records", "malformed"])
        elif not stream.fault:  # a fault is counted when it is reached
            counts.update(["records", "malformed" if is_complete else "truncated"])


def _archive_pages(records: Iterator[tuple[dict, bytes]], counts: Counter) -> Iterator[dict]:
    """Yield the pages of WARC or ARC records."""
    for fields, content in records:
        kind = fields.get("warc-type")
        url = fields.get("warc-target-uri", "").strip("<>")
        if kind not in ("response", "conversion"):
            result = "other"
        elif fields.get("warc-truncated"):
            result = "truncated"
        elif kind == "conversion":
            text = content.decode("utf-8", "replace").strip()
            declared = fields.get("warc-identified-content-language")
            result = (text, language(text, declared)) if text else "empty"
        else:
            result = _response_text(content) if url.startswith("http") else "not_html"
        if isinstance(result, str):
            counts[result] += 1
            continue
        counts["pages"] += 1
        text, lang = result
        yield _page(url, text, lang, fields.get("warc-date", ""))


def _response_text(content: bytes) -> tuple[str, str] | str:
    """(text, language) of an HTTP response, or the word under which it is counted."""
    head = (
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
        b"Content-Length: %d\r\n\r\n" % len(content)
    )
    try:
        record = WarcRecord.from_bytes(head + content)
        record.parse_http(auto_decode="all", quirks_mode=True)
        status = record.http_headers.status_code
        kind, charset = record.http_content_type, record.http_charset
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
    text, declared = extract(html, charset)
    return (text, language(text, declared)) if text else "empty"


def _page(url: str, text: str, lang: str, date: str) -> dict:
    date = date[:10]
    if not _ISO_DATE.fullmatch(date):
        date = ""
    return {"url": url, "text": text, "lang": lang, "date": date}


# ---- JSONL -----------------------------------------------------------------------------------


def _jsonl_pages(stream: _Stream, counts: Counter) -> Iterator[dict]:
    """Yield the pages of a JSONL file: a line has text or html, and perhaps url, lang and date.

    Other corpora use other names for these fields, or put them in "metadata"; both work.
    """
    while True:
        # Read a line.
        size, is_too_long = 0, False
        while (end := stream.data.find(b"\n", stream.at + size)) < 0:
            size = len(stream.data) - stream.at
            if size > _LARGEST:  # not a page: skip it, without keeping it in memory
                stream.at, size, is_too_long = len(stream.data), 0, True
            if not stream.fill(size + 1):
                break
        line = stream.data[stream.at : end if end >= 0 else len(stream.data)]
        stream.at += len(line) + 1
        if end < 0 and stream.fault:  # the fault cuts through this line: count both as one
            counts.update(["records", stream.fault])
            stream.resume()
            continue

        # Turn it into a page.
        if is_too_long or len(line) > _LARGEST:
            counts.update(["records", "malformed"])
        elif line.strip():
            counts["records"] += 1
            try:
                result = _row_page(json.loads(line.decode("utf-8-sig")))
            except InputError:  # packages are missing
                raise
            except (ValueError, RecursionError):
                result = "malformed"
            if isinstance(result, str):
                counts[result] += 1
            else:
                counts["pages"] += 1
                yield result
        if end < 0:
            return


def _row_page(row) -> dict | str:
    """The page of a JSON object, or the word under which it is counted."""
    if not isinstance(row, dict):
        return "malformed"
    metadata = row["metadata"] if isinstance(row.get("metadata"), dict) else {}

    def field(*names: str) -> str:
        for place in (row, metadata):
            for name in names:
                value = place.get(name)
                if isinstance(value, str) and value:
                    # Half of a surrogate pair could not be written again.
                    return value.encode("utf-8", "replace").decode()
        return ""

    text = field("text", "raw_content", "content")
    html = "" if text else field("html")
    if html:
        text = html_text(html)
    text = text.strip()
    if not text:
        return "empty"
    lang = language(text, field("lang", "language"))
    return _page(field("url"), text, lang, field("date", "created", "date_download", "timestamp"))
