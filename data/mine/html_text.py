"""HTML to text that keeps the mathematics (paper 2.1), and the language of a text.

resiliparse parses HTML (pip install resiliparse). Formulas become LaTeX before the text is taken,
because text extraction ignores script elements, attributes and MathML, and would drop or flatten
the formulas.
"""

import re
from collections.abc import Callable
from html import escape, unescape
from urllib.parse import unquote, unquote_plus

import numpy as np

from data.io import InputError
from data.mine.asciimath import asciimath
from data.mine.latex import normal_delimiters, tidy
from data.mine.mathml import attribute, mathml

try:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
    from resiliparse.parse.html import HTMLTree
except ImportError:  # needs_libraries reports it when a page must be read
    HTMLTree = None

# Parts that pages themselves mark as navigation. Headers and forms stay, because they often contain
# the title or the whole page. Resiliparse can choose the main content itself, but this takes more
# than twice as long and loses formulas, such as those in lists. Each entry costs 1 to 3 % of the
# time.
_BOILERPLATE = ["nav", "footer", "aside", ".navbar", ".footer", ".sidebar"]
# What MathJax 2 shows in addition to the scripts.
_RENDERED = [
    ".MathJax_Preview",
    ".MathJax",
    ".MathJax_Display",
    ".MathJax_CHTML",
    ".MathJax_SVG",
    ".MathJax_SVG_Display",
]
# Patterns have a maximum length, so that the time for a page does not grow with the square of its
# size.
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
# Names by which a page loads AsciiMath.
_ASCIIMATH = (
    b"ASCIIMathML",
    b"AsciiMath",
    b"asciimath",
    b"AM_CHTML",
    b"AM_HTMLorMML",
    b"AM_SVG",
)
_NEWLINES_3 = re.compile("\n\n\n+")
_BACKTICKS = re.compile(r"`([^`\n]{1,500})`")


def needs_libraries(*others) -> None:
    """Raise InputError if resiliparse is not installed, or if one of `others` is None."""
    if None in (HTMLTree, *others):
        raise InputError(
            "reading web pages needs fastwarc and resiliparse: pip install fastwarc resiliparse"
        )


# ---- Formulas in elements, scripts and images ------------------------------------------------


def _element_latex(tag: str, inside: str) -> str:
    """LaTeX of a math element: the author's LaTeX if the element carries it, else from MathML."""
    for note in _ANNOTATION.finditer(inside):
        if _TEX.search(note[1]):
            return unescape(note[2])
    return attribute(tag, "alttext") or mathml(inside)


def _image_latex(tag: str) -> str:
    """The LaTeX that an image shows, from its address or alternative text; "" for other images."""
    source = attribute(tag, "src") or ""
    if any(address in source for address in _IMAGE_SOURCES):
        query = source.partition("?")[2]
        values = {}
        for part in query.split("&"):
            key, _, value = part.partition("=")
            if value:
                values[key] = value
        latex = unquote_plus(values.get("latex") or values.get("tex") or values.get("chl") or "")
        if not latex and re.search(r"codecogs|mathtex|mimetex|latex\?", source):
            latex = unquote(query)
        return latex or attribute(tag, "alt") or ""
    if _IMAGE_CLASS.search(attribute(tag, "class") or ""):
        return attribute(tag, "alt") or ""
    return ""


def _formula(latex: str, tag: str) -> bytes:
    """LaTeX as HTML text between dollar signs; `tag` says whether it stands on its own line."""
    latex = escape(tidy(latex), quote=False)
    if not latex:
        return b" "
    display = "display" in tag and _DISPLAYED.search(tag)
    return (f"<br>$${latex}$$<br>" if display else f"${latex}$").encode()


def _replace_script(match: re.Match) -> bytes:
    tag, source = match[1].decode(), match[2].decode()
    read: Callable[[str], str] = str
    if "math/mml" in tag:
        read = mathml
    elif "math/asciimath" in tag:
        read = asciimath
    return _formula(read(source), tag)


def _replace_element(match: re.Match) -> bytes:
    tag = match[1].decode()
    return _formula(_element_latex(tag, match[2].decode()), tag)


def _replace_images(page: bytes, skip_wikipedia: bool) -> bytes:
    """Replace images of formulas by LaTeX.

    With `skip_wikipedia`, images next to a math element with the same formula stay.
    """
    pieces, done, at = [], 0, page.find(b"<img")
    while at >= 0 and (end := page.find(b">", at)) >= 0:
        tag = page[at + 1 : end]
        candidate = b"tex" in tag or b"math" in tag
        if candidate and not (skip_wikipedia and b"mwe-math" in tag):
            latex = _image_latex(tag.decode())
            if latex:
                pieces += page[done:at], _formula(latex, tag.decode())
                done = end + 1
        at = page.find(b"<img", end)
    return b"".join([*pieces, page[done:]]) if pieces else page


def _with_formulas(html: bytes) -> tuple[bytes, list[str] | None]:
    """Turn the formulas in elements, scripts and images of a page into text.

    Returns (HTML, CSS selectors of elements that show the same formulas again). The selectors are
    None if the page mentions neither mathematics nor LaTeX.

    This works before parsing, because MathML would be a large part of what is parsed, and on bytes,
    because a search in bytes is faster.
    """
    between = html.split(b"math")  # a single pass over the page; most pages need no more
    if len(between) == 1 and b"latex" not in html:
        return html, None
    before = {part[-1:] for part in between[:-1]}  # characters before "math"
    after = {part[:1] for part in between[1:]}

    page, shown = html, []
    if b"/" in after:
        page, count = _SCRIPT.subn(_replace_script, page)
        shown += _RENDERED if count else []
    if b":" in before:  # elements with a namespace prefix
        page = re.sub(rb"<(/?)\w+:math\b", rb"<\1math", page)
    if b"<" in before or b":" in before:
        page = _MATH.sub(_replace_element, page)
        if b"katex-mathml" in page:
            shown.append(".katex-html")
    wikipedia = b"-" in before and b"mwe-math-mathml" in html
    return _replace_images(page, skip_wikipedia=wikipedia), shown


# ---- Text ------------------------------------------------------------------------------------


def _decode(html: bytes | str, encoding: str | None) -> tuple[str, bytes]:
    """A page as a string, and the same as UTF-8."""
    if isinstance(html, bytes):
        # Bytes that are valid UTF-8 are UTF-8, whatever the page declares. Only UTF-16 and ISO-2022
        # (with escape characters) cannot be told from UTF-8 by their bytes.
        if b"\x1b" not in html and not (encoding or "").lower().startswith("utf-16"):
            html = html.removeprefix(b"\xef\xbb\xbf")
            try:
                return html.decode(), html
            except UnicodeDecodeError:
                pass
        encoding = encoding or detect_encoding(html, from_html_meta=True) or "utf-8"
        html = bytes_to_str(html, map_encoding_to_html5(encoding), "replace")
    source = html.encode("utf-8", "replace")  # a string may contain half of a surrogate pair
    return source.decode(), source


def extract(html: bytes | str, encoding: str | None) -> tuple[str, str]:
    """(text, declared language) of a page."""
    html, source = _decode(html, encoding)
    page, shown = _with_formulas(source)

    # Parsing inside the extraction is faster, so make a tree only for formulas in attributes.
    tree = html if page is source else page.decode()
    if shown is not None and b"tex=" in page and (b"data-latex=" in page or b"data-tex=" in page):
        tree = HTMLTree.parse(tree)
        for node in tree.document.query_selector_all("[data-latex], [data-tex]").values():
            latex = tidy(node.getattr("data-latex") or node.getattr("data-tex") or "")
            node.replace_with(tree.create_text_node(f"${latex}$" if latex else " "))
    text = extract_plain_text(tree, skip_elements=_BOILERPLATE + (shown or []), alt_texts=False)
    if not text or text.isspace():  # the whole page is in an element that was left out
        text = extract_plain_text(tree, skip_elements=shown or [], alt_texts=False)

    # AsciiMath, delimiters, blank lines
    if "`" in text and _BACKTICKS.search(text) and any(name in source for name in _ASCIIMATH):
        text = _BACKTICKS.sub(lambda match: f"${asciimath(match[1])}$", text)
    text = normal_delimiters(text)
    if "\n\n\n" in text:
        text = _NEWLINES_3.sub("\n\n", text)
    at = html.find("<html")
    tag = html[at : html.find(">", at)] if at >= 0 else ""
    return text.strip(), attribute(tag, "lang") or attribute(tag, "xml:lang") or ""


def html_text(html: bytes | str, encoding: str | None = None) -> str:
    """The text of a page. Paragraphs are separated by a blank line, formulas are $...$ or $$...$$.

    These formulas become LaTeX: LaTeX in the text, with any delimiters; LaTeX in the attributes
    data-latex and data-tex; MathJax scripts; annotations and attributes of MathML; MathML;
    AsciiMath (between backticks only if the page loads AsciiMath); images made from LaTeX. Scripts,
    styles and what the page marks as navigation are left out.

    `encoding` is the encoding of bytes. By default it is what the page declares, or what the bytes
    look like. Raises InputError if resiliparse is not installed.
    """
    needs_libraries()
    return extract(html, encoding)[0]


# ---- Language --------------------------------------------------------------------------------

_TWO_LETTERS = {
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


def language(text: str, declared: str | None = "") -> str:
    """The language of a text: "zh", "ja" or "ko" by script, else what the page declares, or "".

    A script counts if a fifth of the visible characters belong to it, because formulas and markup
    use Latin letters. A declared language is reduced to its first part: "en-GB" becomes "en".

    >>> language("数学 x = 1"), language("Mathematics", "en-GB")
    ('zh', 'en')
    """
    if not text.isascii():
        codes = np.frombuffer(text.encode("utf-16-le", "replace"), "<u2")
        visible = max(1, int((codes > 32).sum()))

        def count(low: int, high: int) -> int:
            return int(((codes >= low) & (codes <= high)).sum())

        kana, hangul, han = count(0x3040, 0x30FF), count(0xAC00, 0xD7AF), count(0x3400, 0x9FFF)
        if kana + hangul + han > 0.2 * visible:
            if hangul > kana + han:
                return "ko"
            return "ja" if kana > 0.1 * (kana + han) else "zh"
    first = re.match(r"[a-z]{2,3}(?![a-z])", (declared or "").strip().lower())
    return _TWO_LETTERS.get(first[0], first[0]) if first else ""
