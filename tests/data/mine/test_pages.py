"""pages.py: records of crawl files, and damage at every place."""

import gzip
import json
import random
import re
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.io import InputError, read_jsonl, write_jsonl
from data.mine import html_text, pages
from data.mine.pages import read_pages

needs_libraries = pytest.mark.skipif(
    html_text.HTMLTree is None, reason="fastwarc or resiliparse is not installed"
)


def read(tmp_path, data: bytes, name="file"):
    path = tmp_path / name
    path.write_bytes(data)
    counts = Counter()
    found = list(read_pages(path, counts))
    parts = set(counts) - {"records"}
    assert counts["records"] == sum(counts[part] for part in parts)  # every record is counted
    assert counts["pages"] == len(found)
    return found, dict(counts)


def record(
    i,
    body=None,
    kind="response",
    head="200 OK\r\nContent-Type: text/html",
    length=None,
    extra="",
    url=None,
):
    block = (f"HTTP/1.1 {head}\r\n\r\n" if kind == "response" else "").encode()
    block += f"<html lang=en><p>page {i}".encode() if body is None else body
    length = len(block) if length is None else length
    return (
        (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url or f'http://e.org/{i}'}\r\nWARC-Date: 2020-01-0"
            f"{i % 9 + 1}T00:00:00Z\r\nContent-Type: application/http; msgtype=response\r\n{extra}"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()
        + block
        + b"\r\n\r\n"
    )


def page(i):
    return {
        "url": f"http://e.org/{i}",
        "text": f"page {i}",
        "lang": "en",
        "date": f"2020-01-0{i % 9 + 1}",
    }


PACKED = {
    "plain": b"".join,
    "one stream": lambda parts: gzip.compress(b"".join(parts)),
    "a member each": lambda parts: b"".join(map(gzip.compress, parts)),
}


@needs_libraries
@pytest.mark.parametrize("pack", PACKED)
def test_what_becomes_of_records(tmp_path, pack):
    small = gzip.compress(b"<p>small")
    parts = [
        record(0),
        record(0, b"software: x", "warcinfo"),
        record(0, b"GET", "request"),
        record(0, b"", "revisit"),
        record(0, head="404 Not Found\r\nContent-Type: text/html"),
        record(0, head="200 OK\r\nContent-Type: image/png"),
        record(0, head="200 OK"),
        record(0, b""),
        record(0, b"<p> </p><script>x</script>"),
        record(0, extra="WARC-Truncated: length\r\n"),
        record(0, url="dns:e.org"),
        record(
            0,
            small,
            head="200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip",
            url="<http://e.org/g>",
        ),
        record(0, b"no gzip", head="200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip"),
        record(
            0,
            b"4\r\n<p>c\r\n0\r\n\r\n",
            head="200 OK\r\nContent-Type: application/xhtml+xml\r\nTransfer-Encoding: chunked",
        ),
        record(1, "数学 is fun，因为数学很有意思".encode(), "conversion"),
        record(2, b"text", "conversion", extra="WARC-Identified-Content-Language: deu,eng\r\n"),
        record(3, b" ", "conversion"),
        record(8),
    ]
    found, counts = read(tmp_path, PACKED[pack](parts))
    assert counts == {
        "records": 18,
        "pages": 6,
        "other": 3,
        "not_ok": 1,
        "not_html": 3,
        "empty": 3,
        "truncated": 1,
        "malformed": 1,
    }
    assert found[0] == page(0) and found[-1] == page(8)
    assert [(row["url"][13:], row["text"], row["lang"]) for row in found[1:5]] == [
        ("g", "small", ""),
        ("0", "c", ""),
        ("1", "数学 is fun，因为数学很有意思", "zh"),
        ("2", "text", "de"),
    ]


DAMAGE = {
    "header": lambda r: b"WARX" + r[4:],
    "no length": lambda r: re.sub(rb"Content-Length.*\r\n", b"", r),
    "wild length": lambda r: re.sub(rb"Length: \d+", b"Length: abc", r),
    "too long": lambda r: re.sub(rb"Length: (\d+)", b"Length: 120", r),
    "too short": lambda r: re.sub(rb"Length: (\d+)", b"Length: 50", r),
    "enormous": lambda r: re.sub(rb"Length: (\d+)", b"Length: 10000000000000", r),
    "larger than the file": lambda r: re.sub(rb"Length: (\d+)", b"Length: 1000000", r),
    "cut": lambda r: r[:-25],
    "no header": lambda r: b"garbage\r\n" * 5,
}


@needs_libraries
@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_does_not_harm_others(tmp_path, pack, damage):
    for at in (2, 0):
        parts = [record(i) for i in range(6)]
        parts[at] = DAMAGE[damage](parts[at])
        found, counts = read(tmp_path, PACKED[pack](parts))
        assert found == [page(i) for i in range(6) if i != at]
        assert counts == {"records": 6, "pages": 5, "malformed": 1}


@needs_libraries
def test_damaged_gzip_members(tmp_path):
    draw = random.Random(0)
    bodies = [f"<p>page {i} {draw.getrandbits(4000)}".encode() for i in range(6)]
    parts = [gzip.compress(record(i, bodies[i])) for i in range(6)]
    third = parts[2]
    for damaged in (
        third[:50] + bytes(20) + third[70:],
        third[: len(third) // 2],
        third[:-8] + bytes(8),
        b"\x1f\x8b\x08\x00" + bytes(100),
    ):
        found, counts = read(tmp_path, b"".join(parts[:2]) + damaged + b"".join(parts[3:]))
        assert [row["url"][-1] for row in found] == list("01345")
        assert counts == {"records": 6, "pages": 5, "malformed": 1}
    padded = parts[0] + bytes(1000) + parts[1]  # zeros are not damage
    assert read(tmp_path, padded)[1] == {"records": 2, "pages": 2}


@needs_libraries
@pytest.mark.parametrize("pack", PACKED)
def test_cut_at_every_place(tmp_path, pack):
    data = PACKED[pack]([record(0), record(1)])
    whole = {k: 0 for k in range(3)}
    for cut in range(20, len(data), 3):
        found, counts = read(tmp_path, data[:cut])
        assert found == [page(0), page(1)][: len(found)]
        assert counts["records"] <= 2 + (len(found) == 2)  # perhaps only a checksum is missing
        whole[len(found)] += 1
    assert all(whole.values())


@needs_libraries
@settings(max_examples=40)
@given(st.data())
def test_any_damage_is_counted(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("damage")
    raw = bytearray(
        PACKED[data.draw(st.sampled_from(sorted(PACKED)))]([record(i) for i in range(4)])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(12, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=30))
    read(tmp_path, bytes(raw))


def arc(url, body, kind="text/html"):
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
    return f"{url} 127.0.0.1 20140216050221 {kind} {len(block)}\n".encode() + block + b"\n"


@needs_libraries
def test_arc(tmp_path):
    version = b"1 0 Crawl\nURL IP-address Archive-date Content-type Archive-length\n"
    first = (
        f"filedesc://x.arc 0.0.0.0 20140216050221 text/plain {len(version)}\n".encode()
        + version
        + b"\n"
    )
    parts = [first, arc("http://e.org/a", b"<p>one"), arc("http://e.org/b", b"<p>two")]
    for pack in PACKED.values():
        found, counts = read(tmp_path, pack(parts))
        assert [(row["url"], row["text"], row["date"]) for row in found] == [
            ("http://e.org/a", "one", "2014-02-16"),
            ("http://e.org/b", "two", "2014-02-16"),
        ]
        assert counts == {"records": 3, "other": 1, "pages": 2}
    parts[1] = parts[1].replace(b"text/html 5", b"text/html 9", 1)
    assert read(tmp_path, b"".join(parts))[1] == {
        "records": 3,
        "other": 1,
        "pages": 1,
        "malformed": 1,
    }


def test_jsonl(tmp_path):
    rows = [
        {
            "url": "http://e.org/",
            "text": "some text",
            "lang": "en-GB",
            "date": "2020-03-29T09:04:10Z",
        },
        {
            "text": "数学数学",
            "metadata": {"url": "http://e.cn/", "language": "en"},
            "created": "2021-01-01",
        },
        {"url": "http://e.org/1", "text": " "},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] + [
        "",
        "[1]",
        '{"text": ',
        '{"text": "x"}',
    ]
    data = "\n".join(lines).encode()
    expected = [
        {"url": "http://e.org/", "text": "some text", "lang": "en", "date": "2020-03-29"},
        {"url": "http://e.cn/", "text": "数学数学", "lang": "zh", "date": "2021-01-01"},
        {"url": "", "text": "x", "lang": "", "date": ""},
    ]
    for packed in (data, gzip.compress(data), b"\xef\xbb\xbf" + data, data + b"\n"):
        assert read(tmp_path, packed) == (
            expected,
            {"records": 6, "pages": 3, "empty": 1, "malformed": 2},
        )
    found, counts = read(tmp_path, gzip.compress(data)[:-30])  # the last line is incomplete
    assert found == expected[: len(found)] and counts["truncated"] == 1


def test_a_very_long_line_is_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_LARGEST", 10**6)
    monkeypatch.setattr(pages, "_PIECE", 2**16)
    line = b'{"text": "%s"}\n'
    parts = [
        line % b"a",
        line % (b"x" * 3 * 10**6),
        line % (b"y" * 500_000),
        b"{" + b"z" * 2 * 10**6,
    ]
    for packed in (b"".join(parts), gzip.compress(b"".join(parts))):
        found, counts = read(tmp_path, packed)
        assert [len(row["text"]) for row in found] == [1, 500_000]
        assert counts == {"records": 4, "pages": 2, "malformed": 2}


def test_text_that_utf8_cannot_hold(tmp_path):
    found, _ = read(
        tmp_path,
        b'{"text": "a \\ud800 b", "url": "http://e.org/\\udfff"}\n{"text": "\\ud83d\\ude00"}\n',
    )
    write_jsonl(tmp_path / "out.jsonl", found)
    assert [row["text"] for _, row in read_jsonl(tmp_path / "out.jsonl")] == [
        "a ? b",
        "\N{GRINNING FACE}",
    ]


@needs_libraries
def test_endless_headers_take_no_time(tmp_path):
    began = time.process_time()
    for data in (
        b"WARC/1.0\r\n" * 20_000,
        b"WARC/1.0\n" * 20_000,
        b"WARC/1.0\r\n" + b"a: b\r\n" * 100_000,
    ):
        count = data.count(b"WARC")
        assert read(tmp_path, data) == ([], {"records": count, "malformed": count})
    assert read(tmp_path, b"\x1f\x8b\x08\0" * 10_000)[0] == []
    assert time.process_time() - began < 5  # 20 s and more if every search goes to the end


@needs_libraries
def test_records_without_an_address(tmp_path):
    parts = [
        re.sub(rb"WARC-Target-URI.*\r\n", b"", record(i, b"<p>text", kind))
        for i, kind in enumerate(("response", "conversion"))
    ]
    found, counts = read(tmp_path, b"".join(parts))
    assert [row["url"] for row in found] == [""] and counts == {
        "records": 2,
        "pages": 1,
        "not_html": 1,
    }


def test_other_input(tmp_path):
    assert read(tmp_path, b"") == ([], {})
    for data in (b"part-00000.parquet\n", gzip.compress(b"hello"), b"%PDF-1.4", b"[]"):
        (tmp_path / "odd").write_bytes(data)
        with pytest.raises(InputError, match="odd: not WARC, WET, ARC or JSONL"):
            list(read_pages(tmp_path / "odd", Counter()))
    assert read(tmp_path, b"\x1f\x8b\x08\x00 and no more")[1] == {"records": 1, "malformed": 1}
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        list(read_pages(tmp_path / "nowhere", Counter()))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_pages(tmp_path, Counter()))


def test_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(html_text, "HTMLTree", None)
    with pytest.raises(InputError, match="pip install fastwarc resiliparse"):
        html_text.html_text("<p>x")
    (tmp_path / "x.warc").write_bytes(record(0))
    with pytest.raises(InputError, match="pip install fastwarc resiliparse"):
        list(read_pages(tmp_path / "x.warc", Counter()))
    with pytest.raises(
        InputError, match="pip install fastwarc resiliparse"
    ):  # rows are not lost silently
        read(tmp_path, b'{"html": "<p>x"}')


def test_jsonl_needs_no_packages(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "$x$", "url": "http://e.org"}\n')
    code = (
        "import sys; sys.modules.update(fastwarc=None, resiliparse=None)\n"
        "from collections import Counter; from data.mine.html_text import HTMLTree\n"
        "from data.mine.pages import read_pages\n"
        f"print(HTMLTree, [p['text'] for p in read_pages({str(tmp_path / 'x.jsonl')!r}, Counter())])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "None ['$x$']\n"


# ---- Real files ------------------------------------------------------------------------------

# Records by type, and pages. Counted by hand, and with warcio if it can read the file.
FILES = {
    "commoncrawl/whirlwind.warc": dict(records=4, pages=1, other=3),
    "commoncrawl/whirlwind.warc.gz": dict(records=4, pages=1, other=3),
    "commoncrawl/whirlwind.warc.wet": dict(records=2, pages=1, other=1),
    "commoncrawl/whirlwind.warc.wet.gz": dict(records=2, pages=1, other=1),
    "commoncrawl/whirlwind.warc.wat.gz": dict(records=2, other=2),
    "cc_net/sample.warc.txt": dict(records=4, malformed=4),  # all lengths are wrong
    "dolma/cc_en_head-0091.jsonl.gz": dict(records=10, pages=10),
    "dolma/cc_en_head-0174.jsonl.gz": dict(records=10, pages=10),
    "dolma/sample-0000.warc.gz": dict(records=48, pages=22, other=26),
    "dolma/sample-0001.warc.gz": dict(records=34, pages=15, other=19),
    "jwarc/cc.warc.gz": dict(records=1, pages=1),
    "resiliparse/block-sized-records.warc.gz": dict(records=3, other=3),
    "resiliparse/clipped.warc.gz": dict(records=1, truncated=1),
    "warcio/example-bad-non-chunked.warc.gz": dict(records=6, pages=1, other=5),
    "warcio/example-bad.warc.gz.bad": dict(records=6, pages=1, other=4, not_ok=1),
    "warcio/example-digest.warc": dict(records=4, other=4),
    "warcio/example-iana.org-chunked.warc": dict(records=3, pages=1, other=2),
    "warcio/example-resource.warc.gz": dict(records=3, other=3),
    "warcio/example-space-in-target-uri.warc.gz": dict(records=2, other=2),
    "warcio/example-trunc.warc": dict(
        records=4, other=3, malformed=1
    ),  # the response is two bytes short
    "warcio/example-wget-bad-target-uri.warc.gz": dict(records=6, pages=1, other=5),
    "warcio/example-wrong-chunks.warc.gz": dict(records=2, pages=1, other=1),
    "warcio/example.arc.gz": dict(records=2, pages=1, other=1),
    "warcio/example.warc": dict(records=6, pages=1, other=5),
    "warcio/example.warc.gz": dict(records=6, pages=1, other=5),
    "warcio/post-test.warc.gz": dict(records=6, other=3, not_html=3),
}


def inflated(path: Path) -> bytes:
    """Everything in a file that can be decompressed."""
    data, out = path.read_bytes(), b""
    if data[:2] != b"\x1f\x8b":
        return data
    while data:
        inflate = zlib.decompressobj(31)
        out += inflate.decompress(data)
        data = inflate.unused_data
    return out


@needs_libraries
@pytest.mark.parametrize("name", FILES)
def test_real_files(real, name):
    path, counts = real("warc/" + name), Counter()
    found = list(read_pages(path, counts))
    assert dict(counts) == FILES[name]
    data = inflated(path)
    lines = (
        rb'^\{"'
        if "jsonl" in name
        else rb"^(?:WARC/1\.\d\r?$|filedesc://|https?://\S+ [\d.]+ \d{14} )"
    )
    begins = re.findall(lines, data, re.MULTILINE)
    assert counts["records"] == len(begins)
    for row in found:
        assert row["url"].encode() in data and re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert row["text"].strip() == row["text"] != ""
        assert "jsonl" in name or not re.search("<script|\n\n\n", row["text"])


@needs_libraries
@pytest.mark.parametrize("name", FILES)
def test_real_files_cut_and_damaged(real, tmp_path, name):
    """A cut file has the first of the pages. Damage changes at most one page."""
    data, draw = real("warc/" + name).read_bytes(), random.Random(name)
    whole = list(read_pages(real("warc/" + name), Counter()))
    for _ in range(4):
        cut = draw.randrange(20, len(data))
        found, _ = read(tmp_path, data[:cut])
        assert found == whole[: len(found)]
    for _ in range(4):
        odd, at = bytearray(data), draw.randrange(20, len(data))
        odd[at : at + draw.randrange(50)] = draw.randbytes(draw.randrange(50))
        found, _ = read(tmp_path, bytes(odd))
        assert sum(row not in whole for row in found) <= 1


@needs_libraries
def test_a_folder_of_all_kinds(tmp_path):
    """Files of other kinds raise an error that names them; the other files are read."""
    files = {
        "a.warc": record(0),
        "b.warc.gz": gzip.compress(record(1)),
        "c.jsonl": b'{"text": "x"}',
        "d.jsonl": b"",
        "e.gz": gzip.compress(b""),
        "f.png": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "g.txt": b"notes\n",
        "h.csv": b"a,b\n",
        "i.wet": record(2, b"text", "conversion"),
        "j.gz": b"\x1f\x8b",
    }
    read_from, odd = [], []
    for name, data in files.items():
        try:
            read_from.append((name, len(read(tmp_path, data, name)[0])))
        except InputError as error:
            odd.append(str(error).partition(": ")[0].rpartition("/")[2])
    assert read_from == [
        ("a.warc", 1),
        ("b.warc.gz", 1),
        ("c.jsonl", 1),
        ("d.jsonl", 0),
        ("e.gz", 0),
        ("i.wet", 1),
    ]
    assert odd == ["f.png", "g.txt", "h.csv", "j.gz"]


@needs_libraries
def test_every_real_file_is_known(real):
    folder = real("warc")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == set(FILES) | {"commoncrawl/CC-MAIN-2024-22.warc.paths.gz"}
    with pytest.raises(InputError, match="paths.gz: not WARC"):
        list(read_pages(folder / "commoncrawl/CC-MAIN-2024-22.warc.paths.gz", Counter()))
