"""The benches made for GPUs at tiny sizes on the CPU: they run, and tell right from wrong."""

import json

import pytest
import torch

from bench import generate_gpu, kernels_gpu
from model import Transformer, preset


def test_it_runs(tmp_path, capsys):
    arguments = [
        "--small",
        "--device",
        "cpu",
        "--repeats",
        "1",
        "--sweep",
        "--to",
        str(tmp_path / "out"),
    ]
    assert kernels_gpu.main(arguments) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "kernels.jsonl").read_text().splitlines()
    ]
    assert rows[0]["name"] == "correctness" and rows[0]["wrong"] == 0 and rows[0]["checks"] > 80
    assert not [row for row in rows if row.get("failed")]
    timed = {row["name"]: row["ms"] for row in rows if "ms" in row}
    assert any(name.startswith("fused head") for name in timed) and min(timed.values()) > 0
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) >= 4 and losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


@pytest.mark.parametrize("spoil", [lambda x: 1.001 * x, lambda x: x * torch.nan])
def test_a_wrong_kernel_ends_it(spoil, monkeypatch, capsys):
    right = kernels_gpu.group_advantage
    monkeypatch.setattr(
        kernels_gpu,
        "group_advantage",
        lambda *a, backend=None: right(*a, backend=backend) if backend else spoil(right(*a)),
    )
    assert kernels_gpu.main(["--small", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "WRONG: group_advantage" in out and "copy" not in out


def test_without_a_gpu_it_says_what_to_do(capsys):
    with pytest.raises(SystemExit):
        kernels_gpu.main(["--device", "cpu"])
    assert "--small" in capsys.readouterr().err


def test_decoding_beside_its_floor(tmp_path, capsys):
    arguments = ["--small", "--rounds", "1", "--sides", "graphs", "--to", str(tmp_path)]
    assert generate_gpu.main(arguments) == 0
    (row,) = json.loads((tmp_path / "generate.json").read_text())["graphs"]["rows"]
    assert row["tokens"] == 2 * 4 * 12 and row["off"] < 1e-5
    assert row["share"] == pytest.approx(
        row["steps_alone"] * (row["seconds"] - row["first"]) / row["seconds"]
    )
    assert "of the floor" in capsys.readouterr().out
    with torch.device("meta"):
        model = Transformer(preset("1m", 512))
    read = sum(
        p.numel() for p in model.parameters() if p.dim() > 1
    )  # tied: the embedding is the head
    cache = (
        sum(2 * 16 + 2 * 4 * own for own in range(1, 12)) * 4 * 2 * 2 * 32
    )  # layers, two, heads, width
    assert generate_gpu.floor_bytes(model.config, True, 2) == 2 * (11 * read + cache)
