import hashlib
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import shards
from data.io import InputError, jsonl_files, run_cli, write_jsonl
from data.shards import Mixture, Shards, windows, write_shards
from data.tokenizer import Tokenizer
from data.train_tokenizer import train


def make(directory, tokens, **options):
    """A source with the tokens `tokens`, in documents of 7."""
    documents = [list(tokens[i : i + 7]) for i in range(0, len(tokens), 7)]
    return write_shards(
        documents, directory, "hash", directory.name, options.pop("vocab_size", 60_000), **options
    )


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 299), max_size=9), min_size=1, max_size=12),
    st.integers(1, 20),
    st.sampled_from([300, 70_000]),
    st.data(),
)
def test_round_trip(tmp_path_factory, documents, shard_tokens, vocab_size, data):
    directory = tmp_path_factory.mktemp("shards")
    manifest = write_shards(
        documents, directory, "hash", "s", vocab_size, eos_id=299, shard_tokens=shard_tokens
    )
    expected = list(itertools.chain.from_iterable([*document, 299] for document in documents))
    read = Shards(directory, verify=True)
    assert len(read) == len(expected) == manifest["tokens"] and manifest["documents"] == len(
        documents
    )
    start = data.draw(st.integers(0, len(expected)))
    length = data.draw(st.integers(0, len(expected) - start))
    assert read.read(start, length).tolist() == expected[start : start + length]
    # a shard ends with the document that fills it
    sizes = [file["tokens"] for file in manifest["files"]]
    assert all(size >= shard_tokens for size in sizes[:-1])
    assert set(np.cumsum(sizes)) <= set(np.cumsum([len(document) + 1 for document in documents]))


def test_the_bytes_are_little_endian_and_the_manifest_describes_them(tmp_path):
    manifest = write_shards([[1, 258]], tmp_path / "a", "hash", "s", 65_536, eos_id=0)
    assert (tmp_path / "a/tokens-00000.bin").read_bytes() == bytes([1, 0, 2, 1, 0, 0])
    assert (
        json.loads((tmp_path / "a/manifest.json").read_text())
        == manifest
        == {
            "source": "s",
            "tokenizer": "hash",
            "vocab_size": 65_536,
            "eos_id": 0,
            "dtype": "uint16",
            "documents": 1,
            "tokens": 3,
            "files": [
                {
                    "name": "tokens-00000.bin",
                    "tokens": 3,
                    "sha256": hashlib.sha256(bytes([1, 0, 2, 1, 0, 0])).hexdigest(),
                }
            ],
        }
    )
    write_shards([[65_536]], tmp_path / "b", "hash", "s", 65_537)
    assert (tmp_path / "b/tokens-00000.bin").read_bytes() == bytes([0, 0, 1, 0])


def test_rewriting_leaves_nothing_stale(tmp_path):
    make(tmp_path, range(100), shard_tokens=20)
    make(tmp_path, range(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "tokens-00000.bin"]

    def broken():
        yield [1] * 10
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(broken(), tmp_path, "hash", "s", 100, shard_tokens=5)
    with pytest.raises(InputError, match="manifest.json: cannot be read"):
        Shards(tmp_path)  # an unfinished folder is neither the old nor the new data


def test_damage_is_seen(tmp_path):
    make(tmp_path, range(50))
    path = tmp_path / "tokens-00000.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\x01\x00")
    Shards(tmp_path)
    with pytest.raises(InputError, match="tokens-00000.bin: the sha256"):
        Shards(tmp_path, verify=True)
    path.write_bytes(data[:-2])
    with pytest.raises(InputError, match="tokens-00000.bin: 98 bytes where the manifest says 100"):
        Shards(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="tokens-00000.bin: cannot be read"):
        Shards(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="not a manifest"):
        Shards(tmp_path)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="s: document 1 has a token id outside 0..9"):
        write_shards([[1], [10]], tmp_path, "hash", "s", 10)
    with pytest.raises(InputError, match="no tokens"):
        write_shards([], tmp_path, "hash", "s", 10)
    make(tmp_path, range(50))
    Shards(tmp_path).check("hash")
    with pytest.raises(InputError, match="made with tokenizer hash, not with other"):
        Shards(tmp_path).check("other")
    with pytest.raises(IndexError):
        Shards(tmp_path).read(48, 3)
    with pytest.raises(InputError, match="50 tokens are fewer than one window of 51"):
        windows(tmp_path, 50)
    cases = (
        ({"b": 1}, "unmatched: a, b"),
        ({"a": -1}, "weight of a is -1"),
        ({"a": 0}, "all weights"),
    )
    for weights, message in cases:
        with pytest.raises(InputError, match=message):
            Mixture({"a": tmp_path}, weights, 10)


def test_windows_in_order(tmp_path):
    make(tmp_path, range(50), shard_tokens=14)
    assert windows(tmp_path, 10).tolist() == [list(range(i, i + 11)) for i in (0, 10, 20, 30)]
    assert windows(tmp_path, 10, limit=2).shape == (2, 11)


@pytest.fixture
def mixture(tmp_path):
    """Two sources with different tokens: a has 0 and more, in 12 windows of 8; b has 1000 and
    more, in 30 windows."""
    make(tmp_path / "a", range(100), shard_tokens=30)
    make(tmp_path / "b", range(1000, 1241))
    return lambda seed=0, weights=None: Mixture(
        {"a": tmp_path / "a", "b": tmp_path / "b"}, weights or {"a": 1.0, "b": 3.0}, 8, seed
    )


def test_each_epoch_has_each_window_once(mixture):
    batch, names = mixture().next_batch(300)
    assert batch.shape == (300, 9) and batch.dtype == np.int64
    assert (np.diff(batch, axis=1) == 1).all()  # windows continue across shard files
    assert all((row[0] >= 1000) == (name == "b") for row, name in zip(batch, names, strict=True))
    epochs = {}
    for name, count, first in (("a", 12, 0), ("b", 30, 1000)):
        starts = [int(row[0]) - first for row, n in zip(batch, names, strict=True) if n == name]
        assert len(starts) > 2 * count
        epochs[name] = [starts[i : i + count] for i in range(0, len(starts) - count + 1, count)]
        assert all(sorted(epoch) == [8 * i for i in range(count)] for epoch in epochs[name])
        assert epochs[name][0] != epochs[name][1] != sorted(epochs[name][1])


def test_sources_follow_the_weights(mixture):
    _, names = mixture().next_batch(4000)
    assert abs(Counter(names)["a"] / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert Counter(names[::2])["a"] not in (0, 2000)
    assert set(mixture(weights={"a": 0, "b": 2.0}).next_batch(50)[1]) == {"b"}


def test_seeds_differ_and_repeat(mixture):
    first, again, other = (
        mixture(5).next_batch(40),
        mixture(5).next_batch(40),
        mixture(6).next_batch(40),
    )
    assert (first[0] == again[0]).all() and first[1] == again[1]
    assert first[1] != other[1] and (first[0] != other[0]).any()


def test_batch_size_does_not_matter_and_resume_is_exact(mixture):
    whole, names = mixture().next_batch(120)
    pieces, stream = [], mixture()
    for rows in (1, 2, 30, 7):
        pieces.append(stream.next_batch(rows))
    state = json.loads(json.dumps(stream.state_dict()))  # in the form of a checkpoint
    stream.next_batch(13)
    resumed = mixture()
    resumed.next_batch(3)  # the previous state does not matter
    resumed.load_state_dict(state)
    pieces.append(resumed.next_batch(80))
    assert (np.concatenate([piece for piece, _ in pieces]) == whole).all()
    assert sum((n for _, n in pieces), []) == names
    assert len(json.dumps(state)) < 200
    with pytest.raises(InputError, match="seed is 0 in the checkpoint and 1 now"):
        mixture(1).load_state_dict(state)


def test_the_stream_is_the_same_everywhere(mixture):
    # fixed values: if they change, every resumed run changes
    batch, names = mixture().next_batch(24)
    assert "".join(names) == "bbbabbbbbabbabbbbbabbabb"
    assert batch[:6, 0].tolist() == [1128, 1032, 1112, 8, 1096, 1208]


class Letters:
    """Stands in for a tokenizer: each character is a token."""

    hash, vocab_size, eos_id = "letters", 128, 0

    @classmethod
    def load(cls, path):
        return cls()

    def encode_batch(self, texts):
        return [[ord(c) for c in text] for text in texts]


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.tokenizer.Tokenizer", Letters)
    write_jsonl(
        tmp_path / "in.jsonl",
        [
            {"text": "ab"},
            {"question": "q?", "response": "r"},
            {"question": "p?", "solution": "s", "answer": "1"},
        ],
    )
    shards.main(
        [
            "--input",
            str(tmp_path / "in.jsonl"),
            str(tmp_path / "in.jsonl"),
            "--tokenizer",
            "x",
            "--to",
            str(tmp_path / "out"),
            "--source",
            "mine",
        ]
    )
    read = Shards(tmp_path / "out")
    assert bytes(read.read(0, len(read)).tolist()) == b"ab\0q?\nr\0p?\ns\0" * 2
    assert read.manifest["source"] == "mine" and read.manifest["tokenizer"] == "letters"
    assert "6 documents, 26 tokens" in capsys.readouterr().out

    # Other names of the text, other kinds of files, and a folder with no .jsonl file.
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.json").write_text('[{"content": "ab", "text": null}]')
    (tmp_path / "folder" / "2.csv").write_text("raw_content,url\ncd,u\n")
    shards.main(
        ["--input", f"{tmp_path}/folder", "--tokenizer", "x", "--to", str(tmp_path / "out")]
    )
    assert bytes(Shards(tmp_path / "out").read(0, 6).tolist()) == b"ab\0cd\0"

    write_jsonl(tmp_path / "bad.jsonl", [{"text": "ab"}, {"question": "q?"}])
    with pytest.raises(SystemExit) as raised:
        run_cli(
            lambda: shards.main(
                ["--input", str(tmp_path / "bad.jsonl"), "--tokenizer", "x", "--to", "y"]
            )
        )
    assert raised.value.code == 2 and "bad.jsonl:2: no document" in capsys.readouterr().err


def test_real_tokenizer_with_workers(tmp_path):
    texts = [f"Tom has {i} apples and {i * i} pears." for i in range(300)]
    trained = train(texts, 300)
    trained.save(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "in.jsonl", ({"text": text} for text in texts))
    for workers in ("1", "2"):
        shards.main(
            [
                "--input",
                str(tmp_path / "in.jsonl"),
                "--tokenizer",
                str(tmp_path / "tokenizer"),
                "--to",
                str(tmp_path / workers),
                "--workers",
                workers,
            ]
        )
    one, two = Shards(tmp_path / "1"), Shards(tmp_path / "2")
    assert one.manifest == two.manifest  # order and checksums too
    one.check(Tokenizer.load(tmp_path / "tokenizer").hash)
    ids = one.read(0, len(one)).tolist()
    assert ids.count(trained.eos_id) == 300 and ids[-1] == trained.eos_id
    assert trained.decode(ids[: ids.index(trained.eos_id)]) == texts[0]


def test_a_folder_stands_for_its_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / "folder" / "below").mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text("")
    folder, other = tmp_path / "folder", tmp_path / "other.txt"
    assert list(jsonl_files([other, folder])) == [other, folder / "a.jsonl", folder / "b.jsonl"]
    with pytest.raises(InputError, match="below: no .jsonl file in this folder"):
        list(jsonl_files([folder / "below"]))
