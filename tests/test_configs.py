"""Every file in configs/ is read by its program; every option of a trainer has a range."""

import dataclasses
from pathlib import Path
from runtime.options import LIMITS, parse

import pytest

import eval
import rollout
import train_dpo
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from data.io import InputError
from data.mine import loop
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
    "reward_iterations": train_reward,
    "eval": eval,
    "mine": loop,
    "figure3": train_pretrain,
}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_configs_are_read(path):
    if path.stem.startswith("pipeline"):
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


TRAINERS = {p.__name__: p for p in (*PROGRAMS.values(), rollout) if p not in (eval, loop)}


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_every_number_of_a_trainer_has_a_range(trainer):
    """So that no value is taken that trains nothing, climbs the loss or writes a model of NaN."""
    for field in dataclasses.fields(trainer.Config):
        default = field.default
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert LIMITS.keys() & field.metadata or field.metadata["choices"], field.name


@pytest.mark.parametrize(
    "words",
    "lr=inf lr=nan lr=-1 weight_decay=nan weight_decay=-1 max_grad_norm=-1 beta2=1 beta2=-0.1 "
    "beta=-1 clip_low=2 clip_low=-1 clip_high=-1 clip_high=inf decay=1.5 decay=nan warmup=-1 "
    "keep=0 temperature=0 temperature=inf seed=-1 clip=1 lr=1e999".split(),
)
def test_values_that_would_spoil_a_run_are_refused(words):
    with pytest.raises(InputError, match=f"^--{words.partition('=')[0]}"):
        parse(train_grpo.Config, [f"--{words}"], partial=True)
