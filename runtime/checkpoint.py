"""Checkpoints: complete model directories, with what a resume needs beside them."""

import contextlib
import shutil
import warnings
from pathlib import Path

import torch
from torch import nn

from data.io import InputError
from runtime.distributed import World, full_state
from runtime.hf import save_pretrained

Others = (
    dict[str, tuple[nn.Module, torch.optim.Optimizer]] | None
)  # trained beside the model: PPO's value model


class Checkpoints:
    """run_dir/step_000123/: a Hugging Face model directory with, in trainer/, what only a resume needs.

    trainer/ holds float32 weights and optimizer state as torch.distributed.checkpoint, which any number of processes
    may read, and state.pt. A directory is written under a hidden name and renamed: one that can be seen is complete.
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
        """Write a step's checkpoint and remove the oldest beyond `keep`. `state`: plain values and tensors, the same on
        every process. `others`: what else is trained, by name; it goes into trainer/ alone."""
        path = self.directory / f"step_{step:06d}"
        self.write(path, model, tokenizer, optimizer, {"step": step, **(state or {})}, others)
        if self.world.is_main:
            for old in self.complete()[: -self.keep]:
                remove(old)
        return path

    def load_latest(self, model, optimizer, others: Others = None) -> tuple[int, dict] | None:
        """Load the newest checkpoint into models and optimizers: (its step, its state), or None where there is none."""
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
        """A model directory; with trainer/ where an optimizer or a state is given. A collective."""
        temporary = path.with_name(f".{path.name}.tmp")
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "trainer").mkdir(parents=True)
        self.world.barrier()
        weights = full_state(model, "cpu", keep=self.world.is_main)
        if self.world.is_main:
            save_pretrained(model, temporary, state_dict=weights, dtype=self.world.dtype)
            tokenizer.save(temporary)
        del weights
        if state is not None:
            import torch.distributed.checkpoint as dcp

            with _quiet():
                dcp.save(
                    _training_state(model, optimizer, others), checkpoint_id=temporary / "trainer"
                )
            if self.world.is_main:
                torch.save(state, temporary / "trainer" / "state.pt")
        self.world.barrier()
        if self.world.is_main:
            if state is None:
                (temporary / "trainer").rmdir()
            if path.exists():
                remove(path)
            temporary.rename(path)
        self.world.barrier()

    def read(self, path: Path, model, optimizer=None, others: Others = None) -> dict:
        """Load what `write` put into trainer/; returns the state. Raises InputError for a damaged directory."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        try:
            tensors = _training_state(model, optimizer, others)
            with _quiet():
                dcp.load(tensors, checkpoint_id=path / "trainer")
            if optimizer is not None:
                set_optimizer_state_dict(model, optimizer, tensors["optimizer"])
            for name, (other, its_optimizer) in (others or {}).items():
                set_optimizer_state_dict(other, its_optimizer, tensors[name]["optimizer"])
            # A full unpickle, as dcp's own metadata is: resume only from runs of your own.
            return torch.load(path / "trainer" / "state.pt", map_location="cpu", weights_only=False)
        except (Exception, CheckpointException) as error:
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InputError(
                f"{path}: not resumable ({reason[0]}); remove it to go on from the one before"
            ) from error


@contextlib.contextmanager
def _quiet():
    """Without the warning that a checkpoint is written or read by a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _training_state(model, optimizer, others: Others = None) -> dict:
    """The tensors of a resume, by name and sharded as they are; loading writes into them."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    state = {"model": model.state_dict()} | {
        name: _training_state(*pair) for name, pair in (others or {}).items()
    }
    return (
        state
        if optimizer is None
        else state | {"optimizer": get_optimizer_state_dict(model, optimizer)}
    )


def remove(directory: Path) -> None:
    """Remove a directory that is never seen half removed."""
    hidden = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    directory.rename(hidden)
    shutil.rmtree(hidden)
