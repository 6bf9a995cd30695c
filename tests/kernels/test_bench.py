"""bench/kernels_gpu.py, which is made for GPUs, at tiny sizes on the CPU: it runs, and it tells right from wrong."""

import json

import pytest
import torch

from bench import kernels_gpu


def test_it_runs(tmp_path, capsys):
    arguments = ["--small", "--device", "cpu", "--repeats", "1", "--sweep", "--to", str(tmp_path / "out")]
    assert kernels_gpu.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "kernels.jsonl").read_text().splitlines()]
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
    monkeypatch.setattr(kernels_gpu, "group_advantage", lambda *a, backend=None: (
        right(*a, backend=backend) if backend else spoil(right(*a))
    ))  # fmt: skip
    assert kernels_gpu.main(["--small", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "WRONG: group_advantage" in out and "copy" not in out


def test_without_a_gpu_it_says_what_to_do(capsys):
    with pytest.raises(SystemExit):
        kernels_gpu.main(["--device", "cpu"])
    assert "--small" in capsys.readouterr().err
