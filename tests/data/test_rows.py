import gzip
import json
import sys

import pytest

from data.io import InputError, write_jsonl
from data.rows import read_rows

ROWS = [{"question": f"{n}\u2028?", "answer": str(n)} for n in range(3)]


def rows_of(path):
    return [row for _, row in read_rows(path)]


def text_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    "name, content",
    [
        ("f.jsonl", text_of(ROWS)),
        ("f.json", text_of(ROWS)),  # the content decides
        ("f.json", "\ufeff\n" + json.dumps(ROWS, indent=2)),
        ("f.json", json.dumps(ROWS)),
        ("f.json", json.dumps({"version": "1", "data": ROWS})),
        ("f.json", json.dumps({"version": "1", "data": ROWS}, indent=1)),
        ("f.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}, indent=1)),
        ("f.csv", "question,answer\n0\u2028?,0\n1\u2028?,1\n2\u2028?,2\n"),
        ("f.tsv", "question\tanswer\n0\u2028?\t0\n1\u2028?\t1\n2\u2028?\t2\n"),
    ],
)
def test_rows_are_the_same_in_every_kind_of_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert rows_of(tmp_path / name) == ROWS
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert rows_of(tmp_path / "z" / f"{name}.gz") == ROWS


def test_lines_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(["", "{}", "", '{"a": 1}']))
    assert [where for where, _ in read_rows(tmp_path / "a.jsonl")] == [
        f"{tmp_path}/a.jsonl:2",
        f"{tmp_path}/a.jsonl:4",
    ]
    (tmp_path / "a.json").write_text('[\n{"a":\n1},\n{"a": 2}]\n')
    assert [where for where, _ in read_rows(tmp_path / "a.json")] == [
        f"{tmp_path}/a.json:2",
        f"{tmp_path}/a.json:4",
    ]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": [{"role": "user", "content": f"{n}?"}], "reward_model": {"ground_truth": str(n)}}
        for n in range(3000)  # more than a batch
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    assert rows_of(tmp_path / "f.parquet") == rows
    assert list(read_rows(tmp_path / "f.parquet"))[2999][0] == f"{tmp_path}/f.parquet:3000"
    (tmp_path / "saved").mkdir()  # as save_to_disk of `datasets` writes it
    table = pyarrow.Table.from_pylist(rows)
    for name in ("data-00000-of-00001", "cache-1a2b"):
        with pyarrow.ipc.new_stream(tmp_path / "saved" / f"{name}.arrow", table.schema) as stream:
            stream.write_table(table)
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert rows_of(tmp_path / "saved") == rows
    (tmp_path / "f.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"f.parquet: cannot be read \(.*\); give a parquet or"):
        rows_of(tmp_path / "f.parquet")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for path, message in [
        (tmp_path / "f.parquet", r"pyarrow is missing; install it with: pip install -e .\[parquet"),
        ("hf://a/b", r"huggingface_hub is missing; install it with: pip install -e .\[hub\]"),
    ]:
        with pytest.raises(InputError, match=message):
            rows_of(path)


def test_a_folder_stands_for_its_data_files(tmp_path):
    for number in (10, 2):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / f"{number}.json").write_text(json.dumps({"n": number}))
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    for name in ("README.md", ".hidden.jsonl", "dataset_infos.json"):
        (tmp_path / name).write_text("{}")
    assert rows_of(tmp_path) == [{"n": 1}, {"n": 2}, {"n": 10}]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"a": 1}\n{"a":\n', ":2: not valid JSON"),
        ('{"a":\n', ":1: not valid JSON"),
        ('{"a":\n1', ":1: not valid JSON"),
        ('{"a": 1}\n3\n', ":2: not a JSON object; each row must be one"),
        ('[{"a": 1},\n{"a"}]', ":2: not valid JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', ":1: not a JSON object; each row must be one"),
        ('[\n{"a": 1}]\n[{"a": 2}]', ":2: text after the end of the list"),
        ('{"a": 1}\n{"a": ' + "[" * 200_000, ":2: not valid JSON"),
        ('{"a": ' + "1" * 5000 + "}", ":1: not valid JSON .a number with too many digits"),
        ('[{"a": 1},\n{"a": ' + "[" * 200_000, ":2: not valid JSON .too deep"),
        (b"\xff\xfe\xff", ": not UTF-8 text"),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / "f.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"^{path}{message}"):
        rows_of(path)
    (tmp_path / "f.jsonl.gz").write_bytes(b"\x1f\x8b no")
    for name in ("f.jsonl.gz", "none.jsonl"):
        with pytest.raises(InputError, match=f"{name}: cannot be read .*; give JSONL"):
            rows_of(tmp_path / name)


def hub(monkeypatch, folder):
    """A hub that serves a folder: the two calls of huggingface_hub that are made."""
    hub = pytest.importorskip("huggingface_hub")

    def list_repo_files(self, repo_id, *, revision=None, repo_type=None, token=None):
        assert repo_type == "dataset"
        if repo_id != "owner/name":
            raise RuntimeError(f"404: {repo_id}\nmore lines")
        return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]

    def hf_hub_download(repo_id, filename, *, repo_type=None, revision=None):
        assert (repo_id, repo_type) == ("owner/name", "dataset")
        return str(folder / filename)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)


def test_data_sets_of_the_hub(tmp_path, monkeypatch):
    hub(monkeypatch, tmp_path)
    files = [
        "README.md",
        "dataset_infos.json",
        "main/train-00000-of-00002.jsonl",
        "main/train-00001-of-00002.jsonl",
        "main/test-00000-of-00001.jsonl",
        "other/train.jsonl",
        "chat/train_sft-00000.jsonl",
        "chat/test_sft-00000.jsonl",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"name": name}) + "\n")

    def names(address):
        return [row["name"] for row in rows_of(address)]

    assert names("hf://owner/name/main") == files[2:4]
    assert names("hf://datasets/owner/name@v1/main") == files[2:4]
    assert names("hf://owner/name/main:train") == files[2:4]
    assert names("hf://owner/name:test") == files[4:5]
    assert names("hf://owner/name:test_sft") == files[7:]
    assert names("hf://datasets/owner/name/main/test-00000-of-00001.jsonl") == files[4:5]
    for address, message in [
        ("hf://owner/name", r"several folders have such files \(main, other\); add one: /FOLDER"),
        ("hf://owner/name:valid", "no file of split valid; the repository has chat/test_sft"),
        ("hf://owner/none", r"cannot be downloaded \(404: owner/none\); check the name"),
        ("hf://owner", "not the address of a data set; write hf://OWNER/NAME"),
    ]:
        with pytest.raises(InputError, match=f"^{address}: {message}"):
            names(address)


def test_half_a_character_can_be_written(tmp_path):
    """JSON can hold a surrogate without the other one. UTF-8 cannot."""
    path = tmp_path / "f.jsonl"
    for text in (
        '{"a": "x\\ud800y \\ud83d\\ude00 \\\\ud"}\n',
        '[{"a": "x\\uD800y \U0001f600 \\\\ud"}]',
    ):
        path.write_text(text)
        assert rows_of(path) == [{"a": "x\ufffdy \U0001f600 \\ud"}]
    write_jsonl(tmp_path / "g.jsonl", rows_of(path))
    assert rows_of(tmp_path / "g.jsonl") == rows_of(path)
