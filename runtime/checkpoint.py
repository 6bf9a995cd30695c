"""Checkpoints: complete model directories, with what a resume needs beside them."""

import contextlib
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from data.io import InputError
from model import ModelConfig
from runtime.distributed import World, full_state
from runtime.hf import from_pretrained, save_pretrained

# Models that are trained beside the main one, by name, with their optimizers: PPO's value model.
Others = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]] | None


class Checkpoints:
    """run_dir/step_000123/: a Hugging Face model directory, and in trainer/ what a resume needs.

    trainer/ holds state.pt and, as torch.distributed.checkpoint, which any number of processes can
    read, the optimizer's state. It has weights only where those of the model directory are rounded.
    A directory is written under a hidden name, then renamed: every step_* is complete.
    """

    def __init__(self, run_dir, world: World | None = None, keep: int = 2):
        self.directory, self.world, self.keep = Path(run_dir), world or World(), max(keep, 1)

    def complete(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [path for path in self.directory.glob("step_*") if path.name[5:].isdigit()]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def save(
        self,
        step: int,
        model,
        tokenizer,
        optimizer,
        state: dict | None = None,
        others: Others = None,
    ) -> Path:
        """Write the checkpoint of a step, and remove the oldest if there are more than `keep`.

        state: plain values and tensors, the same on every process. others: models that go into
        trainer/ only.
        """
        path = self.directory / f"step_{step:06d}"
        self.write(path, model, tokenizer, optimizer, {"step": step, **(state or {})}, others)
        if self.world.is_main:
            for old in self.complete()[: -self.keep]:
                remove(old)
        return path

    def load_latest(self, model, optimizer, others: Others = None) -> tuple[int, dict] | None:
        """Load the newest checkpoint. Returns its step and state, or None if there is none."""
        path = self.world.broadcast_object(next(reversed(self.complete()), None))
        if path is None:
            return None
        state = self.read(path, model, optimizer, others)
        return state.pop("step"), state

    def write(
        self,
        path: Path,
        model,
        tokenizer,
        optimizer=None,
        state: dict | None = None,
        others: Others = None,
    ) -> None:
        """Write a model directory; with trainer/ if a state is given. A collective."""
        temporary = path.with_name(f".{path.name}.tmp")
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.world.barrier()

        # The model, as Hugging Face stores it.
        weights = full_state(model, "cpu", keep=self.world.is_main)
        if self.world.is_main:
            self._keep_source(model)
            _keep_end(model.config, tokenizer.eos_id)
            save_pretrained(model, temporary, state_dict=weights, dtype=self.world.dtype)
            if not (temporary / "tokenizer.json").exists():
                tokenizer.save(temporary)
        del weights

        # What a resume needs: every process writes its part.
        if state is not None:
            import torch.distributed.checkpoint as dcp

            trainer = temporary / "trainer"
            trainer.mkdir(exist_ok=True)
            tensors = _training_state(model, optimizer, others)
            if all(p.dtype == self.world.dtype for p in model.parameters()):
                del tensors["model"]  # the model directory has these weights
            with _quiet():
                dcp.save(tensors, checkpoint_id=trainer)
            if self.world.is_main:
                torch.save(state, trainer / "state.pt")

        # Now it is complete.
        self.world.barrier()
        if self.world.is_main:
            if path.exists():
                remove(path)
            temporary.rename(path)
        self.world.barrier()

    def _keep_source(self, model) -> None:
        """Where the directory that the model came from is gone, the last checkpoint stands for it."""
        if model.source and not model.source.directory.is_dir():
            if saved := self.complete():
                model.source.directory = saved[-1]
            else:
                print(f"{model.source.directory} is gone: no side files", file=sys.stderr)
                model.source = None

    def read(self, path: Path, model, optimizer=None, others: Others = None) -> dict:
        """Load what `write` put into trainer/, with the weights, and return the state.

        Raises InputError for a damaged directory. state.pt is unpickled without limits, as is the
        metadata of torch.distributed.checkpoint: resume only runs that you trust.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        trainer = path / "trainer"
        try:
            tensors = _training_state(model, optimizer, others)
            stored = dcp.FileSystemReader(trainer).read_metadata().state_dict_metadata
            if not any(name.startswith("model.") for name in stored):
                del tensors["model"]
                weights = from_pretrained(path, score=model.config.score).state_dict()
                set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
            with _quiet():
                dcp.load(tensors, checkpoint_id=trainer)
            if optimizer is not None:
                set_optimizer_state_dict(model, optimizer, tensors["optimizer"])
            for name, (other, other_optimizer) in (others or {}).items():
                set_optimizer_state_dict(other, other_optimizer, tensors[name]["optimizer"])
            return torch.load(trainer / "state.pt", map_location="cpu", weights_only=False)
        except (Exception, CheckpointException) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InputError(
                f"{path}: not resumable ({reason[0]}); remove it to continue from the one before"
            ) from error


def _keep_end(config: ModelConfig, eos_id: int | None) -> None:
    """What was learned or sampled as the end of a text, as by a chat template, ends the result's too."""
    ends = config.eos_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not config.score and eos_id is not None and eos_id not in ends:
        config.eos_id = [eos_id, *ends] if ends else eos_id


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that a single process writes or reads a checkpoint."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _training_state(model, optimizer, others: Others = None) -> dict:
    """The tensors of a resume by name, split as they are. Loading writes into them."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    state = {"model": model.state_dict()}
    for name, (other, other_optimizer) in (others or {}).items():
        state[name] = _training_state(other, other_optimizer)
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer)
    return state


def remove(directory: Path) -> None:
    """Remove a directory. It gets a hidden name first, so that nobody sees a half of it."""
    hidden = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    shutil.rmtree(hidden)
