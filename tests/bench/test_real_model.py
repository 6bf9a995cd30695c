"""bench/real_model.py without the model: the order of rows, the roles of tokens, and its directory."""

import sys

import torch

from bench import real_model
from data.io import run_cli


def run(monkeypatch, directory) -> int:
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--to", str(directory)])
    try:
        run_cli(real_model.main)
    except SystemExit as stop:
        return stop.code
    return 0


def test_rows_of_queries_and_keys_come_in_the_order_of_hugging_face():
    # Two heads of four rows. GGUF: the rows that RoPE turns together, 0 and 2, 1 and 3, side by side.
    weight = torch.tensor([0, 2, 1, 3, 10, 12, 11, 13]).float()[:, None]
    expected = [0, 1, 2, 3, 10, 11, 12, 13]
    assert real_model.unpermuted(weight, 2).flatten().tolist() == expected


def test_a_conversion_that_was_stopped_can_be_repeated(tmp_path, monkeypatch, capsys):
    def write(to):
        to.mkdir(parents=True)
        (to / "config.json").write_text("{}")

    def stopped(to):
        write(to)
        raise OSError("No space left on device")

    to = tmp_path / "runs" / "model"
    monkeypatch.setattr(real_model, "convert", stopped)
    assert run(monkeypatch, to) != 0 and not to.exists()
    capsys.readouterr()
    monkeypatch.setattr(real_model, "convert", write)
    assert run(monkeypatch, to) == 0
    assert [path.name for path in to.parent.iterdir()] == ["model"]
    assert run(monkeypatch, to) == 2
    error = capsys.readouterr().err
    assert error == f"error: --to {to}: holds files already; give another directory\n"
