"""urls.py: spellings of addresses, and hosts."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.mine.urls import base_url, normalize_url

SAME = [
    "http://example.com/a/b?x=1&y=2",
    "https://example.com/a/b?x=1&y=2",
    "HTTP://WWW.EXAMPLE.COM/a/b?x=1&y=2",
    "http://example.com:80/a/b?x=1&y=2",
    "https://example.com:443/a/b/?x=1&y=2",
    "http://example.com./a/b?x=1&y=2",
    "http://user:pass@example.com/a/b?x=1&y=2",
    "example.com/a/b?x=1&y=2",
    "example.com:80/a/b?x=1&y=2",
    "//example.com/a/b?x=1&y=2",
    " http://example.com/a/b?x=1&y=2\n",
    "http://example.com/a/b?y=2&x=1",
    "http://example.com/a/b?x=1&y=2#part",
    "http://example.com/a/b?x=1&&y=2&",
    "http://example.com/a/b/index.html?x=1&y=2",
    "http://example.com/a/b/Default.aspx?x=1&y=2",
    "http://example.com/a/./c/../b?x=1&y=2",
    "http://example.com/%61/b?x=1&y=2",
    "http://example.com/a/b;jsessionid=1A2B?x=1&y=2",
    "http://example.com/a/b?utm_source=n&x=1&y=2&utm_medium=m&fbclid=Iw&gclid=C&PHPSESSID=0a&sessionid=3",
    "http://example.com/a/b?x=1&y=2&sid=0123456789abcdef0123456789abcdef",
]
DIFFERENT = [
    "http://example.com/a/b?x=1&y=2",
    "http://example.com/a/b?x=1",
    "http://example.com/a/b?x=2&y=1",
    "http://example.com/A/b?x=1&y=2",
    "http://example.com:8080/a/b?x=1&y=2",
    "http://m.example.com/a/b?x=1&y=2",
    "http://example.org/a/b?x=1&y=2",
    "http://example.com/a%2Fb?x=1&y=2",
    "http://example.com/a/b?x=1%26y=2",
    "http://example.com/a/b/index?x=1&y=2",
    "http://example.com/a/b?x=1&y=2&sid=75",
    "http://example.com/a/b?x=1&y=2&message=utm_source",
    "ftp://example.com/a/b?x=1&y=2",
]


def test_all_spellings_of_an_address_are_equal():
    assert {normalize_url(url) for url in SAME} == {SAME[0]}


def test_different_addresses_stay_different():
    assert len({normalize_url(url) for url in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize(
    "url, expected",
    [
        (
            "https://www.Example.com/a/%7Eb/index.html?utm_source=x&z=1&y=2#top",
            "http://example.com/a/~b?y=2&z=1",
        ),
        ("http://example.com", "http://example.com"),
        ("http://example.com/index.php", "http://example.com"),
        ("http://www.com/", "http://www.com"),
        ("http://例子.cn/数学?q=二", "http://xn--fsqu00a.cn/%E6%95%B0%E5%AD%A6?q=%E4%BA%8C"),
        ("http://[2001:DB8::1]:80/x", "http://[2001:db8::1]/x"),
        ("http://e.com/100%/a%2fb", "http://e.com/100%25/a%2Fb"),
        ("http://e.com/%%34", "http://e.com/%254"),
        ("http://[broken/x", "http://[broken/x"),
        ("http://e.com:port/x", "http://e.com:port/x"),
        ("mailto:A@b.c#d", "mailto:A@b.c"),
        ("", "http://"),
    ],
)
def test_normalize_url(url, expected):
    assert normalize_url(url) == expected


pieces = st.sampled_from(
    [
        "http:",
        "https:",
        "HTTP:",
        "ftp:",
        "//",
        "/",
        "www.",
        "WWW.",
        "example.com",
        "例子.cn",
        ":80",
        ":443",
        ":8080",
    ]
    + [
        ":",
        ".",
        "..",
        "/.",
        "/..",
        "index.html",
        "/index.php",
        "?",
        "&",
        "a=1",
        "b",
        "utm_x=1",
        "sid=1",
        "#",
        "%",
    ]
    + [
        "%2e",
        "%2F",
        "%25",
        "%41",
        ";jsessionid=1",
        "@",
        "[",
        "]",
        "[::1]",
        " ",
        "\x00",
        "é",
        "\ud800",
        "~",
        "+",
    ]
    + ["ß.de", "．", "xn--"]
)


@settings(max_examples=400)
@given(st.one_of(st.text(max_size=30), st.lists(pieces, max_size=10).map("".join)))
@example("http://www.www.www.com/index.html/index.html/")
@example("http://a//../index.html")
def test_normalizing_again_changes_nothing(url):
    once = normalize_url(url)
    assert normalize_url(once) == once


@pytest.mark.parametrize(
    "url, host",
    [
        ("https://www.Example.ORG:8080/a?b#c", "example.org"),
        ("http://user:pw@math.se./q", "math.se"),
        ("example.com/to?u=http://b.org/", "example.com"),
        ("example.com/path", "example.com"),
        ("//cdn.x.io/", "cdn.x.io"),
        ("<http://example.com/>", "example.com"),
        ("http://www.com", "com"),
        ("http://[::1]:80/", "::1"),
        ("http://[bad/", ""),
        ("", ""),
        ("HTTPS://WWW.数学.CN/", "数学.cn"),
    ],
)
def test_base_url(url, host):
    assert base_url(url) == host
