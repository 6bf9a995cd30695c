"""Benches made for GPUs at tiny sizes on the CPU; triton_cases.py runs the one of the kernels."""

import json

import pytest
import torch

from bench import generate_gpu, kernels_gpu
from model import Transformer
from presets import preset


def test_without_a_gpu_it_says_what_to_do(capsys):
    with pytest.raises(SystemExit):
        kernels_gpu.main(["--device", "cpu"])
    assert "--small" in capsys.readouterr().err


def test_decoding_beside_its_floor(tmp_path, capsys):
    arguments = ["--small", "--rounds", "1", "--sides", "graphs", "--to", str(tmp_path)]
    generate_gpu.main(arguments)
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
    assert generate_gpu.floor_bytes(model.config, generate_gpu.SMALL, 2) == 2 * (11 * read + cache)
