"""The oracle is the tokenizers library: it gives the same ids and the same text for the same
tokenizer.json, whether it is ours or in the style of LLaMA-3, Qwen2 and DeepSeek."""

import copy
import itertools
import json
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from data import tokenizer as tokenizer_module
from data.io import InputError
from data.tokenizer import Tokenizer
from data.train_tokenizer import train

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

ENGLISH = """The baker packed 36 rolls on Monday, and she packed a third as many on Tuesday. How many rolls did the \
baker pack on both days? She'd packed 36/3 = 12 rolls on Tuesday; that's 36+12 = 48 rolls, and we're done.\n"""
CHINESE = """小明有12个苹果，每天吃3个，几天后吃完？解：12÷3=4（天）。答案是4。
二〇二四年，中文和English混排，，没有空格！
"""
LATEX = r"""\[ \sum_{k=1}^{n} k^2 = \frac{n(n+1)(2n+1)}{6}, \qquad \left|\alpha\right| \le \sqrt{2}\,\mathbb{R} \]
By $\varepsilon$-$\delta$, $f'(x_0)=\lim_{h\to 0}\frac{f(x_0+h)-f(x_0)}{h}$ \\ \begin{align*} x &= 1 \end{align*}
"""
CODE = (
    "def f(x):\r\n\tif x  >=  10:\n        return {'a': [1, 2.5e-3]}\n\n\n    # ok   \n"
    + Path(__file__).read_text()[:4000]
)
CORPUS = [
    ENGLISH * 3,
    CHINESE * 3,
    LATEX * 3,
    CODE,
    "Straße naïve Ελλάδα привет हिन्दी 日本語のテキスト 한국어 عربى " * 3,
]
SAMPLES = [
    *CORPUS,
    "",
    " ",
    "   \n\n \t x\u00a0\u3000y\u2028 \x85\x1c z  ",
    "It's WE'LL I'Ve you'RE 'ſ 'tis ''s",
    "1234567890 ٣٤٥ ½ ² Ⅷ 〇〡 ５６ 3.14159e-10 1,234",
    "é e\u0301 Å \u212b ﬁ 각 \u1100\u1161\u11a8 q\u0323\u0307",  # what NFC changes, and what it does not
    "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f1e8\U0001f1f3 ⺀ 々 𠮷 \ufeff\u200b\ufffd\x00\x7f",
    "<|endoftext|> <|begin_of_text|>a<|im_start|>user <tool_call>{}</tool_call> ø÷ÿ <｜end▁of▁sentence｜>",
    "x" * 400 + "ab" * 400 + "!" * 400 + " " * 400,
]


# Files as other projects publish them: their split patterns, with merges that the tokenizers
# library learns here


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
SPLITTERS = {
    "llama3": [split(LLAMA3), BYTE_LEVEL],
    "qwen2": [split(LLAMA3.replace("{1,3}", "")), BYTE_LEVEL],
    "deepseek-coder": [
        split("[\r\n]"),
        split(r"\s?\p{L}+"),
        split(r"\s?\p{P}+"),
        split(CJK),
        pre_tokenizers.Digits(individual_digits=True),
        BYTE_LEVEL,
    ],
    "deepseek-llm": [
        split("[\r\n]"),
        split(
            "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0370-\u0373\u0400-\u0481]+"
        ),
        split("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
        split(r"\s+$"),
        split(CJK),
        pre_tokenizers.Digits(individual_digits=True),
        BYTE_LEVEL,
    ],
    "deepseek-v3": [
        split(r"\p{N}{1,3}"),
        split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        split(
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
        ),
        BYTE_LEVEL,
    ],
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "digits-only": [split(r"\p{N}"), BYTE_LEVEL],  # leaves text between its matches
    "lines": [split(r"^\s+|\s+$"), split("[,.]"), BYTE_LEVEL],
}


def build(style, vocab_size=700):
    """(tokenizer.json, tokenizer_config.json) in the style of a published tokenizer."""
    oracle = tokenizers.Tokenizer(models.BPE())
    oracle.pre_tokenizer = pre_tokenizers.Sequence(SPLITTERS[style])
    oracle.decoder = decoders.ByteLevel()
    if style == "qwen2":
        oracle.normalizer = normalizers.NFC()
    elif style.startswith("deepseek"):
        oracle.normalizer = normalizers.Sequence([])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if (
        style == "deepseek-coder"
    ):  # bytes that UTF-8 never has are missing, or are added as tokens by mistake
        alphabet = [char for char in alphabet if char not in "ÀÁõö÷øùúûüýþÿ"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    oracle.train_from_iterator(CORPUS, trainer)
    if style == "deepseek-coder":
        oracle.add_tokens([AddedToken(char, normalized=True) for char in "õ÷Á"])
    config = {"eos_token": "<|im_end|>", "bos_token": None, "add_bos_token": False}
    if style == "qwen2":
        oracle.add_special_tokens(
            [AddedToken(text, normalized=False) for text in ("<|endoftext|>", "<|im_end|>")]
        )
        oracle.add_tokens([AddedToken(text, normalized=False) for text in ("<tool", "<tool_call>")])
        oracle.add_tokens([AddedToken("e\u0301tude", normalized=True)])
    elif style.startswith("deepseek"):
        names = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
        oracle.add_special_tokens([AddedToken(text, normalized=True) for text in names])
        config = {"bos_token": {"__type": "AddedToken", "content": names[0]}, "add_bos_token": True}
        config["eos_token"] = {"__type": "AddedToken", "content": names[1]}
    else:
        names = ("<|begin_of_text|>", "<|end_of_text|>")
        oracle.add_special_tokens([AddedToken(text, normalized=False) for text in names])
        config = {"bos_token": names[0], "eos_token": names[1]}
    document = json.loads(oracle.to_str())
    if style == "llama3":
        make_llama3(document)
    return document, config


def make_llama3(document):
    """Merges that are made from tiktoken ranks: every cut of a token into two known tokens, with
    ignore_merges."""
    vocab = document["model"]["vocab"]
    merges = []
    for token in sorted(vocab, key=vocab.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += sorted(
            ([left, right] for left, right in cuts if left in vocab and right in vocab),
            key=lambda cut: (vocab[cut[0]], vocab[cut[1]]),
        )
    assert len(merges) > len(document["model"]["merges"])
    begin = {"id": "<|begin_of_text|>", "type_id": 0}
    whole = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": begin}, whole],
        "pair": [
            {"SpecialToken": begin},
            whole,
            {"SpecialToken": begin},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {begin["id"]: {"id": begin["id"], "ids": [700], "tokens": [begin["id"]]}},
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    document["post_processor"] = {"type": "Sequence", "processors": [byte_level, template]}
    document["model"] |= {"merges": merges, "ignore_merges": True}


def oracle_of(document):
    oracle = tokenizers.Tokenizer.from_str(json.dumps(document))
    oracle.encode_special_tokens = True  # special tokens in the text are text
    return oracle


# What else published files hold
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
PIPELINES = {
    "starcoder": [pre_tokenizers.Digits(individual_digits=True), GPT2],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        GPT2,
        pre_tokenizers.Digits(individual_digits=False),
        split("[0-9][0-9][0-9]"),
    ],
    "gpt4": [pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), BYTE_LEVEL],
    "possessive": [split(POSSESSIVE), BYTE_LEVEL],
    "bloom": [split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), BYTE_LEVEL],
    "prefix": [split("[,.]"), pre_tokenizers.ByteLevel(add_prefix_space=True)],
    "no split": [BYTE_LEVEL],
    "empty matches": [split("(?=[A-Z])|x*"), BYTE_LEVEL],
    "behaviors": [
        pre_tokenizers.Split(Regex(r"(?:\r?\n)+(?!\r?\n)"), "merged_with_next"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        pre_tokenizers.Split(Regex("[a-y]+"), "contiguous", invert=True),
        pre_tokenizers.Split(Regex("z"), "merged_with_next", invert=True),
        pre_tokenizers.Split("\t", "removed"),
        BYTE_LEVEL,
    ],
}


def changed(**parts):
    """(our reading, the reading of the oracle) of a small file with other parts."""
    document, config = build("gpt2")
    for name, part in parts.items():
        document[name] = json.loads(part) if isinstance(part, str) else part
    return Tokenizer(document, config), oracle_of(document)


@pytest.fixture(scope="module")
def pipelines():
    def state(parts):
        return pre_tokenizers.Sequence(parts).__getstate__().decode()

    return {name: changed(pre_tokenizer=state(parts)) for name, parts in PIPELINES.items()}


@pytest.fixture(scope="module")
def ours():
    return train(CORPUS, 700, ["<|endoftext|>", "<|im_end|>"])


@pytest.fixture(scope="module")
def pairs(ours):
    """style -> (our reading, the reading of the oracle)"""
    documents = {style: build(style) for style in SPLITTERS}
    found = {
        style: (Tokenizer(*document), oracle_of(document[0]))
        for style, document in documents.items()
    }
    return found | {"ours": (ours, oracle_of(ours._document))}


STYLES = [*SPLITTERS, "ours"]


@pytest.mark.parametrize("style", STYLES)
def test_same_ids_as_tokenizers_on_samples(pairs, style):
    tokenizer, oracle = pairs[style]
    assert tokenizer._bpe.ranks is not None  # by tiktoken, not by the slow code
    expected = [oracle.encode(text, add_special_tokens=False).ids for text in SAMPLES]
    assert [tokenizer.encode(text) for text in SAMPLES] == expected
    assert tokenizer.encode_batch(SAMPLES) == expected
    assert tokenizer.vocab_size == oracle.get_vocab_size()
    for ids, text in zip(expected, SAMPLES, strict=True):
        assert tokenizer.decode(ids) == (
            unicodedata.normalize("NFC", text) if style == "qwen2" else text
        )


any_text = st.text(st.characters(exclude_categories=["Cs"]))
fragments = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "12", "3", ".", "，", "是", "的", "e\u0301"]
)
words = st.sampled_from([word for text in SAMPLES for word in text.split()[:200]])
mixed = st.lists(
    st.one_of(fragments, words, any_text.filter(lambda text: len(text) < 4)), max_size=12
).map("".join)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=120)
@given(data=st.data())
def test_same_ids_as_tokenizers_on_random_text(pairs, style, data):
    tokenizer, oracle = pairs[style]
    text = data.draw(st.one_of(mixed, any_text))
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text, add_special_tokens=False).ids
    if style == "qwen2":
        text = oracle.normalizer.normalize_str(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", PIPELINES)
@settings(max_examples=80)
@given(text=st.one_of(mixed, any_text))
def test_other_pre_tokenizers(pipelines, name, text):
    tokenizer, oracle = pipelines[name]
    ids = oracle.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == oracle.decode(ids)
    assert tokenizer._bpe.splits == (name in ("gpt4", "possessive", "bloom", "no split"))


CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


@pytest.mark.parametrize("style", ["ours", "deepseek-coder", "deepseek-v3", "starcoder", "falcon"])
def test_every_code_point_between_neighbors(pairs, pipelines, style):
    """The libraries know different versions of Unicode: characters that are new in one of them."""
    tokenizer, oracle = (pairs | pipelines)[style]
    new = regex.findall(r"[\P{Cn}--[\p{Co}\p{Han}]]", "".join(CHARACTERS), regex.V1)
    new = [char for char in new if unicodedata.category(char) == "Cn"]
    digits = [char for char in new if regex.match(r"\p{N}", char)]
    assert len(new) > 5000 and len(digits) > 13
    text = "".join(f"a{char}中{char} 1{char}" for char in [*CHARACTERS[::499], *new[::19], *digits])
    assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids
    pieces = [piece for piece, _ in oracle.pre_tokenizer.pre_tokenize_str(text)]
    if style == "falcon":  # its last steps see bytes as characters
        assert tokenizer._cut(text) == pieces
    else:
        assert [
            tokenizer_module.visible(piece.encode()) for piece in tokenizer._cut(text)
        ] == pieces


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalizers(form):
    tokenizer, oracle = changed(normalizer={"type": form})
    marks = regex.findall(r"[^\p{ccc=0}]|\p{NFKD_QC=No}", "".join(CHARACTERS))
    text = " ".join(f"{mark}a\u0345{mark}\u0301e" for mark in marks)
    assert tokenizer._normalize(text) == oracle.normalizer.normalize_str(text)
    parts = [
        {"type": "Prepend", "prepend": "x "},
        {"type": "Replace", "pattern": {"String": "a."}, "content": r"\1"},
        {"type": form},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    ]
    tokenizer, oracle = changed(normalizer={"type": "Sequence", "normalizers": parts})
    for text in [*SAMPLES, "a.b  c", "e\u0301 a.", ""]:
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids


ADDED_TEXTS = ["<mask>", "word", " hi ", "  ", "à", "e\u0301", "<x>y", "x>", "_", "The", "\n", "ab"]


@settings(max_examples=150)
@given(data=st.data())
def test_added_tokens_with_any_options(pairs, data):
    """Searched before or after NFC, whole words, with the white space around them; some are in the
    vocabulary too. A special token hides what overlaps it, but its text is only text."""
    gpt2 = pairs["gpt2"][0]
    document = copy.deepcopy(gpt2._document) | {"normalizer": {"type": "NFC"}}
    vocab = document["model"]["vocab"]
    for text in data.draw(
        st.lists(st.sampled_from(ADDED_TEXTS), min_size=1, max_size=5, unique=True)
    ):
        names = ("special", "single_word", "lstrip", "rstrip", "normalized")
        flags = {name: data.draw(st.booleans()) for name in names}
        if text.isspace():  # the library fails where two tokens take the same white space
            flags |= {"lstrip": False, "rstrip": False}
        id = vocab.get(text, max(row["id"] for row in document["added_tokens"]) + 1)
        document["added_tokens"].append({"id": id, "content": text, **flags})
    tokenizer, oracle = Tokenizer(document, gpt2._config), oracle_of(document)
    pieces = st.sampled_from([*ADDED_TEXTS, "<|end_of_text|>", " ", "\t", "s", ".", "b", "\u0301"])
    for _ in range(4):
        text = "".join(data.draw(st.lists(pieces, max_size=9)))
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 699), max_size=30))
def test_decode_of_any_ids_is_that_of_tokenizers(pairs, ids):
    tokenizer, oracle = pairs["ours"]
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode_bytes(ids).decode("utf-8", "replace") == tokenizer.decode(ids)


def test_decode_special_invalid_and_out_of_vocabulary(ours):
    assert ours.decode([ours.eos_id, 0xE4, ours.eos_id, ord("a"), 10**6]) == "\ufffda"
    assert ours.decode_bytes([0xE4, ours.eos_id]) == b"\xe4"
    assert ours.decode_bytes([0xE4, ours.eos_id, 10**6], special=True) == b"\xe4<|endoftext|>"


def test_special_tokens_cannot_be_forged(ours):
    for text in ours.special:
        assert not set(ours.special.values()) & set(ours.encode(text))
        assert ours.decode(ours.encode(text)) == text
    assert ours.special == {"<|endoftext|>": 698, "<|im_end|>": 699} and ours.eos_id == 698
    assert (ours.bos_id, ours.add_bos, ours.vocab_size) == (None, False, 700)


def test_lone_surrogates_and_very_long_blanks(pairs):
    tokenizer = pairs["ours"][0]
    for style in ("ours", "qwen2", "deepseek-coder"):
        other = pairs[style][0]
        assert other.decode(other.encode("a\ud800b \ud83d\ude00")) == "a\ufffdb 😀"
    by_merges_alone = Tokenizer(*toy([("a", "b"), ("b", "c"), ("a", "bc")]))
    assert by_merges_alone.decode(by_merges_alone.encode("a\ud800b")) == "a\ufffdb"
    assert train(["a\ud800b a\ud800b"], 300).hash == train(["a\ufffdb a\ufffdb"], 300).hash
    blank = "a" + " " * 1_100_000 + "b"  # tiktoken alone panics here
    assert tokenizer.decode(tokenizer.encode(blank)) == blank
    assert tokenizer.encode_batch(["a", blank]) == [tokenizer.encode("a"), tokenizer.encode(blank)]


# Foreign files: ids, ranks, roles


@pytest.mark.parametrize(
    "text",
    ["e\u0301tude", "\u00e9tude", "a e\u0301tudes", "<tool_call><tool></tool_call>", "<tool_"],
)
def test_added_tokens_that_are_not_special_are_found_in_text(pairs, text):
    tokenizer, oracle = pairs["qwen2"]
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text, add_special_tokens=False).ids
    assert max(ids) >= 700 and not set(ids) & set(tokenizer.special.values())


def test_ids_not_in_merge_order():
    document, config = build("qwen2")
    ids = list(range(700))
    permuted = {token: ids[(id * 37 + 5) % 700] for token, id in document["model"]["vocab"].items()}
    document["model"]["vocab"] = permuted
    tokenizer, oracle = Tokenizer(document, config), oracle_of(document)
    assert tokenizer._bpe.id_of_rank is not None
    for text in SAMPLES:
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids


def toy(merges, ignore_merges=False, unmerged=()):
    """A tokenizer.json over a, b, c with the given merges, and tokens that no merge makes."""
    document, config = build("gpt2", 257)
    vocab = sorted(tokenizer_module._CHAR.values())
    vocab += dict.fromkeys(["".join(pair) for pair in merges] + list(unmerged))
    vocab = {token: id for id, token in enumerate(dict.fromkeys(vocab))}
    document["model"] |= {
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
        "ignore_merges": ignore_merges,
    }
    for id, row in enumerate(document["added_tokens"], len(vocab)):
        row["id"] = id
    return document, config


@settings(max_examples=150)
@given(data=st.data())
def test_any_merges_list_gives_the_ids_of_tokenizers(data):
    """Also for lists that no training makes, and whose order tiktoken's ranks cannot express."""
    tokens, merges = list("abc"), []
    for _ in range(data.draw(st.integers(1, 7))):
        pair = (data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens)))
        if pair not in merges and len("".join(pair)) <= 6:
            merges.append(pair)
            tokens.append("".join(pair))
    order = data.draw(st.sampled_from(["as made", "any", "every cut"]))
    if order == "any":
        merges = data.draw(st.permutations(merges))
    elif order == "every cut":  # as lists made from tiktoken ranks
        made = dict.fromkeys(left + right for left, right in merges)
        cuts = [(token[:i], token[i:]) for token in made for i in range(1, len(token))]
        merges = [cut for cut in cuts if all(part in made or len(part) == 1 for part in cut)]
    unmerged = data.draw(st.lists(st.text("abc", min_size=2, max_size=4), max_size=2))
    document, config = toy(merges, data.draw(st.booleans()), unmerged)
    tokenizer, oracle = Tokenizer(document, config), oracle_of(document)
    for text in map(
        "".join, itertools.chain.from_iterable(itertools.product("abc", repeat=n) for n in range(7))
    ):
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids, (
            merges,
            text,
        )


@pytest.mark.parametrize(
    "merges, text, tokens",
    [
        (
            ["a b", "b c", "a bc"],
            "abc",
            ["ab", "c"],
        ),  # by rank ab|c would become abc, but only a|bc does
        (
            ["b b", "b bb", "bb b", "bbb bbb"],
            "bbbbbb",
            ["bb"] * 3,
        ),  # tiktoken takes a whole pre-token
        (["ab c", "a b"], "abc", ["abc"]),  # it comes before its part
        (["a b", "b c", "a bc", "ab c"], "bcabc", ["bc", "abc"]),  # every cut is listed
        (["a b", "b c", "a bc", "c a", "ab c"], "abca", ["ab", "ca"]),  # but not side by side
        (
            ["a b", "b c", "a bc", "d e", "e f", "d ef", "de f"],
            "abcd",
            ["ab", "c", "d"],
        ),  # not every cut of each token
    ],
)
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_merges_by_hand(merges, text, tokens, ignore_merges):
    document, config = toy([tuple(merge.split()) for merge in merges], ignore_merges)
    if ignore_merges and "".join(tokens) in document["model"]["vocab"]:
        tokens = [text]
    tokenizer, oracle = Tokenizer(document, config), oracle_of(document)
    assert [tokenizer.decode([id]) for id in tokenizer.encode(text)] == tokens
    assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids


def test_ignore_merges_takes_whole_pre_tokens():
    merges = [("a", "b"), ("b", "c")]
    assert len(Tokenizer(*toy(merges, True, ["abc"])).encode("abc")) == 1
    assert len(Tokenizer(*toy(merges, False, ["abc"])).encode("abc")) == 2


@pytest.mark.parametrize(
    "unk, fuse, ignore_merges",
    [(None, False, False), ("<unk>", False, False), ("<unk>", True, True), ("a", True, False)],
)
def test_bytes_outside_the_vocabulary(unk, fuse, ignore_merges):
    """They are dropped before the merges, or become the unknown token, as the file says."""
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    oracle = tokenizers.Tokenizer(models.BPE())
    oracle.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTE_LEVEL])
    oracle.decoder = decoders.ByteLevel()
    oracle.train_from_iterator([ENGLISH] * 3, trainer)
    document = json.loads(oracle.to_str())
    document["model"] |= {"unk_token": unk, "fuse_unk": fuse, "ignore_merges": ignore_merges}
    tokenizer, oracle = Tokenizer(document, {"eos_token": "<unk>"}), oracle_of(document)
    for text in [*SAMPLES, "b\x04a\x04\x04k\x04er", "中中 aé\x04", "\x04", "ba中ker"]:
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False).ids, text
    assert tokenizer.encode_batch(SAMPLES) == [tokenizer.encode(text) for text in SAMPLES]


def test_bytes_that_no_text_has_need_no_unknown_token():
    document, config = build("deepseek-coder")
    document["model"]["unk_token"] = "<unk>"
    assert Tokenizer(document, config).encode("ab") == oracle_of(document).encode("ab").ids


def test_bos_and_eos_are_told_by_config_template_and_generation_config(tmp_path, pairs):
    llama, deepseek, qwen = (pairs[style][0] for style in ("llama3", "deepseek-coder", "qwen2"))
    assert (llama.bos_id, llama.eos_id, llama.add_bos) == (700, 701, True)
    assert (deepseek.special["<｜begin▁of▁sentence｜>"], deepseek.add_bos) == (
        deepseek.bos_id,
        True,
    )
    assert (qwen.bos_id, qwen.add_bos, qwen.eos_id) == (None, False, qwen.special["<|im_end|>"])

    document, _ = build("llama3")
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="tokenizer.json: no end-of-text token.*eos_token"):
        Tokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 700}')
    assert Tokenizer.load(tmp_path).eos_id == 700
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    assert Tokenizer.load(tmp_path).eos_id == 700
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [701, 700]}')
    assert Tokenizer.load(tmp_path / "tokenizer.json").eos_id == 701
    Tokenizer.load(tmp_path).save(tmp_path / "copy")  # the copy does not need the two configs
    assert Tokenizer.load(tmp_path / "copy").eos_id == 701
    for config, eos_id in (({}, 700), ({"added_tokens_decoder": {}}, 701)):  # as in transformers
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        roles = {"eos_token": {"content": "<|begin_of_text|>", "lstrip": False}}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
        assert Tokenizer.load(tmp_path).eos_id == eos_id
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    with pytest.raises(InputError, match="eos_token '<eos>'"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("style", STYLES)
def test_save_and_load_keep_everything(tmp_path, pairs, style):
    tokenizer = pairs[style][0]
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    for name in ("special", "vocab_size", "eos_id", "bos_id", "add_bos", "hash"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    assert loaded.encode_batch(SAMPLES) == tokenizer.encode_batch(SAMPLES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_hash_sees_what_decides_the_ids_and_nothing_else(ours):
    def changed(change):
        document = copy.deepcopy(ours._document)
        change(document)
        return Tokenizer(document, ours._config).hash != ours.hash

    assert not changed(lambda d: d.update(truncation=None, version="2"))
    assert not changed(
        lambda d: d["model"].update(merges=[merge.split(" ") for merge in d["model"]["merges"]])
    )
    assert changed(lambda d: d["model"]["merges"].pop())
    assert changed(lambda d: d.update(normalizer={"type": "NFC"}))
    assert changed(lambda d: d["added_tokens"][1].update(content="<|other|>"))
    assert changed(lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=LLAMA3))
    assert changed(change_split(behavior="Removed")) and changed(change_split(invert=True))
    assert not changed(lambda d: d["added_tokens"][1].update(lstrip=True))  # special: not searched
    assert len(ours.hash) == 64


def change_model(**options):
    return lambda d: d["model"].update(options)


def change_split(**options):
    return lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(options)


@pytest.mark.parametrize(
    "change, message",
    [
        (change_model(type="Unigram"), "model type Unigram"),
        (lambda d: d["model"].update(dropout=0.1), "dropout"),
        (change_model(byte_fallback=True), "byte_fallback"),
        (change_model(continuing_subword_prefix="##"), "continuing_subword_prefix"),
        (
            lambda d: d["model"].update(vocab={"b": 0}, merges=[], unk_token="<unk>"),
            "unk_token '<unk>' is not in the vocabulary",
        ),
        (lambda d: d["model"]["vocab"].update({"aaaa": 5}), "same id"),
        (lambda d: d["model"]["vocab"].update({"a": -1}), "an id is below 0"),
        (
            lambda d: d.update(normalizer={"type": "Prepend", "prepend": None}),
            "normalizer Prepend: None is not a text",
        ),
        (lambda d: d["model"]["merges"].append("q qqqq"), r"merge \d+ \(q qqqq\)"),
        (lambda d: d["model"].pop("merges"), "KeyError: 'merges'"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        (lambda d: d.update(pre_tokenizer=None), "SentencePiece"),
        (change_split(type="Metaspace"), "pre_tokenizer Metaspace"),
        (change_split(behavior="Merged"), "behavior Merged"),
        (change_split(pattern={"Regex": "(a"}), r"split pattern '\(a'"),
        (
            lambda d: d.update(post_processor={"type": "Other"}),
            "post_processor Other",
        ),
        (lambda d: d.update(decoder={"type": "Metaspace"}), "decoder is not ByteLevel"),
    ],
)
def test_unsupported_files_are_refused_by_name(ours, change, message):
    document = copy.deepcopy(ours._document)
    change(document)
    with pytest.raises(InputError, match=message.replace("|", r"\|")) as error:
        Tokenizer(document, ours._config, "dir/tokenizer.json")
    assert str(error.value).startswith("dir/tokenizer.json: ") and "\n" not in str(error.value)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(InputError, match="tokenizer.json: not found"):
        Tokenizer.load(tmp_path)
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "KeyError"),
    ):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match=message):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize("model_type", [None, "llama", "qwen3"])
def test_transformers_loads_what_we_save(tmp_path, ours, model_type):
    transformers = pytest.importorskip("transformers")
    ours.save(tmp_path)
    if model_type:  # the same files as in a checkpoint
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": model_type, "vocab_size": 700})
        )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size and theirs.eos_token_id == ours.eos_id
    for text in SAMPLES:
        if not any(special in text for special in ours.special):
            assert theirs(text)["input_ids"] == ours.encode(text)
            assert theirs.decode(ours.encode(text)) == text
