"""URLs of web pages: a normal form for all spellings of an address, and the host."""

import re
from urllib.parse import quote, urlsplit

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Query parameters that track visitors or name sessions.
_TRACKING = re.compile(
    r"(?:utm_\w*|fbclid|gclid|gclsrc|dclid|wbraid|gbraid|msclkid|yclid|ttclid|twclid|igshid|mc_cid"
    r"|mc_eid|mkt_tok|_ga|_gl|_hsenc|_hsmi|spm|ref_src|sessionid|session_id|sessid|phpsessid"
    r"|jsessionid|asp\.net_sessionid|cfid|cftoken)(?:=.*)?|sid=[0-9a-f]{32}",
    re.IGNORECASE,
)
# The same within a path, and the names of index pages.
_SESSION = re.compile(r";(?:jsessionid|phpsessid|sessionid|sid)=[^/;]*", re.IGNORECASE)
_INDEX = re.compile(r"/(?:index|default)\.(?:html?|php|aspx?|jsp)$", re.IGNORECASE)


def base_url(url: str) -> str:
    """The host of a URL in lower case, without port and "www."; "" if there is none.

    Pages with the same base URL form a domain (2.1).

    >>> base_url("https://user@www.Example.com:443/math")
    'example.com'
    """
    url = url.strip().strip("<>")
    if not SCHEME.match(url):
        url = "//" + url.lstrip("/")
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # brackets that are not an IPv6 address
        return ""
    return host.rstrip(".").removeprefix("www.")


def normalize_url(url: str) -> str:
    """The normal form of a URL. To normalize again changes nothing.

    Scheme and host are in lower case, and the scheme is http. These parts are removed: "www.",
    user, default port, fragment, slash at the end, index page, dot segments, and parameters that
    track visitors or name sessions. The other parameters are sorted. Percent-encoding has one
    spelling.

    An address without a scheme counts as http. Of other schemes, and of what cannot be parsed, only
    the fragment is removed.

    >>> normalize_url("HTTPS://www.Example.com:443/a/%7Eb/index.html?utm_source=x&z=1&y=2#top")
    'http://example.com/a/~b?y=2&z=1'
    """
    url = "".join(url.split())
    if url.startswith("//"):
        url = "http:" + url
    elif not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(?!\d)", url):  # "host:80/" has no scheme
        url = "http://" + url
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return url.partition("#")[0]
        host, port = _host(parts.hostname or ""), parts.port
    except ValueError:
        return url
    if port not in (None, 80, 443):
        host += f":{port}"
    pieces = _percent(parts.query, "?").split("&")
    query = "&".join(sorted(p for p in pieces if p and not _TRACKING.fullmatch(p)))
    return f"http://{host}{_path(parts.path)}" + (f"?{query}" if query else "")


def _host(name: str) -> str:
    """A host in ASCII and lower case, without "www."."""
    labels = re.split(r"[.\u3002\uff0e\uff61]+", name)
    host = ".".join(filter(None, labels))
    try:
        encoded = host.encode("idna").decode().lower()
        host = encoded if re.fullmatch(r"[a-z0-9_.-]*", encoded) else host
    except UnicodeError:
        pass  # a label is too long; crawls contain such hosts
    while host.startswith("www.") and "." in host[4:]:
        host = host[4:]
    return f"[{host}]" if ":" in host else host  # a colon: IPv6


def _path(path: str) -> str:
    """A path without dot segments, session, index page and slash at the end."""
    parts: list[str] = []
    for part in _SESSION.sub("", _percent(path)).split("/")[1:]:
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    path = "".join("/" + part for part in parts)
    while (shorter := _INDEX.sub("", path.rstrip("/"))) != path:
        path = shorter
    return path


def _percent(text: str, safe: str = "") -> str:
    """Text with one spelling of percent-encoding: unreserved characters plain, others as %XX."""

    def plain(match: re.Match) -> str:
        character = chr(int(match[1], 16))
        unreserved = character.isalnum() or character in "-._~"
        return character if character.isascii() and unreserved else match[0].upper()

    text = re.sub("%(?![0-9A-Fa-f]{2})", "%25", text)
    text = re.sub("%([0-9A-Fa-f]{2})", plain, text)
    return quote(text, safe="%!$&'()*+,;=:@/[]" + safe, errors="replace")
