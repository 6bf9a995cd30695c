"""Every file in configs/ is read by the program it is for: no option misspelt, none of another type."""

from pathlib import Path

import pytest

import eval
import train_dpo
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from data.mine import loop
from runtime.options import parse
from tools import pipeline

ROOT = Path(__file__).parents[1] / "configs"
PROGRAMS = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "grpo": train_grpo,
    "hacked": train_grpo,
    "dpo": train_dpo,
    "ppo": train_ppo,
    "reward": train_reward,
    "reward_refresh": train_reward,
    "eval": eval,
    "mine": loop,
    "figure3": train_pretrain,
}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_configs_are_read(path):
    if path.stem == "pipeline":
        words = [
            w
            for stage in pipeline.load(str(path))["stage"]
            for command in stage["run"]
            for w in command.split()
        ]
        used = [
            word.replace("{configs}", str(path.parent)) for word in words if word.endswith(".toml")
        ]
        used = [name for name in used if not name.startswith("{to}")]
        assert used and all((ROOT.parent / name).exists() for name in used)
    else:
        parse(PROGRAMS[path.stem].Config, ["--config", str(path)], partial=True)
