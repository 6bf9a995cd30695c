"""The choice between definitions and accelerators. Imports nothing of ours from outside kernels/.

A *definition* is plain PyTorch under autograd. It stands where a student looks for it (model.py, batch.py, generate.py
or a trainer), and it is what runs:

    @definition
    def rms_norm(x, weight, eps):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

An *accelerator* in this folder computes the same, faster:

    @accelerator("model.rms_norm", takes=on_cpu, cases=rms_norm_cases)
    def rms_norm(x, weight, eps): ...

It is used only while its claim holds. `use` checks that at the start of a run, in two ways:

- By code. kernels/fingerprints.json holds a fingerprint of all definitions that an accelerator repeats, recorded when
  it was last proved (`python -m kernels`). An edit of one of them changes the fingerprint.
- By numbers. Definition and accelerator are run on small random cases; values and gradients must agree.

Where one of the two fails, the definition runs as it stands, and a line says which accelerator was set aside and why.
"""

import contextlib
import functools
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from kernels.fingerprint import NoSource, expand, module_name

FINGERPRINTS = Path(__file__).with_name("fingerprints.json")
# Files with accelerators. For each definition, the first of them that takes a call computes it.
MODULES = (
    "kernels.cpu.attention",
    "kernels.cpu.block",
    "kernels.onednn",
    "kernels.flex_attention",
    "kernels.packed_attention",
    "kernels.cpu.decoder",
    "kernels.triton.decoder",
    "kernels.triton.advantage",
    "kernels.triton.policy_loss",
    "kernels.triton.logprob",
    "kernels.triton.head_loss",
    "kernels.logprob",
    "kernels.head_loss",
)

definitions: dict[str, Callable] = {}  # name -> the plain function
accelerators: list["Accelerator"] = []  # all that are loaded, in the order of MODULES
_table: dict[str, list["Accelerator"]] = {}  # name of a definition -> accelerators in use
_right: set[str] = set()  # accelerators and settings whose numbers were right
_failed: dict[str, str] = {}  # name of an accelerator -> why its numbers are wrong
_said: set[str] = set()  # lines about choices that this run has printed


def definition(function: Callable) -> Callable:
    """Mark a function as a definition: a call goes to an accelerator that is in use and takes it, else to the function."""
    name = f"{module_name(function.__module__)}.{function.__qualname__}"
    definitions[name] = function

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():  # torch.compile makes the definition itself fast
            return function(*args, **kwargs)
        for accelerator in _table.get(name, ()):
            if accelerator.takes(*args, **kwargs):
                return accelerator.function(*args, **kwargs)
        return function(*args, **kwargs)

    call.definition, call.seam = function, call
    return call


def small(shape):
    """A ModelConfig of two layers of the run's own kind: its family, head width, switches and share of key heads.

    Layers of several kinds: two of each.
    """
    kv_heads = min(shape.kv_heads, 2)
    heads = kv_heads * min(shape.heads // shape.kv_heads, 4)
    kinds = shape.layer_kinds and sorted(set(shape.layer_kinds)) * 2
    changes = dict(layers=len(kinds) if kinds else 2, layer_kinds=kinds)
    changes |= dict(width=64, heads=heads, kv_heads=kv_heads, ffn=96)
    return replace(shape, vocab_size=160, score="", **changes)


@dataclass
class Setting:
    """What the cases of a check should look like: a small model of the run's family, on the run's device."""

    shape: object  # a ModelConfig of two layers with the switches of the run's model
    device: torch.device = torch.device("cpu")
    bf16: bool = False  # matrix products in bfloat16

    @property
    def tolerance(self) -> float:
        """Largest difference, as a share of the largest value."""
        return 3e-2 if self.bf16 or self.device.type == "cuda" else 2e-4


@dataclass(eq=False)
class Accelerator:
    """A function of this folder that computes a definition.

    computes: name of the definition whose calls it takes. stands_for: names of all definitions whose mathematics it
    repeats; their helpers are found from their code. takes: says of a call's arguments whether it can compute them.
    available: says of a device whether it can be used there, and may return a sentence that says why not.
    cases: makes arguments for the check by numbers; tensors that require a gradient get one.
    error: makes the check in place of `cases`, where a call returns no tensors: the largest error of a function.
    """

    function: Callable
    computes: str
    stands_for: tuple[str, ...]
    takes: Callable[..., bool]
    available: Callable[[torch.device], bool | str]
    cases: Callable[[Setting], Iterable[tuple]] | None
    error: Callable[["Accelerator", Setting], float] | None = None

    @property
    def name(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"


def accelerator(
    computes: str,
    *,
    cases: Callable[[Setting], Iterable[tuple]] | None = None,
    error: Callable[["Accelerator", Setting], float] | None = None,
    takes: Callable[..., bool] = lambda *args, **kwargs: True,
    available: Callable[[torch.device], bool | str] = lambda device: True,
    stands_for: Iterable[str] = (),
) -> Callable:
    """Register a function as an accelerator of the definition `computes`; see Accelerator."""

    def register(function: Callable) -> Callable:
        names = tuple(dict.fromkeys((computes, *stands_for)))
        accelerators.append(Accelerator(function, computes, names, takes, available, cases, error))
        return function

    return register


def plain():
    """Run by definitions alone inside a `with` block."""
    return using({})


@contextlib.contextmanager
def using(functions: dict[str, Callable]) -> Iterator[None]:
    """Compute these definitions, by name, by these functions inside a `with` block, whatever the arguments."""
    with restored():
        _table.clear()
        for name, function in functions.items():
            _table[name] = [SimpleNamespace(function=function, takes=lambda *args, **kwargs: True)]
        yield


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """What is in use at the start of a `with` block is in use again after it."""
    saved = dict(_table)
    try:
        yield
    finally:
        _table.clear()
        _table.update(saved)


@dataclass
class Choice:
    """What `use` decided: accelerators in use (definition -> names), and those set aside (name -> why)."""

    in_use: dict[str, list[str]] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What the first lines of a run say."""
        files = {name.rpartition(".")[0] for names in self.in_use.values() for name in names}
        used = ", ".join(sorted(files)) or "none, definitions alone"
        return [*self.set_aside.values(), f"accelerators: {used}"]

    def news(self) -> list[str]:
        """The lines that no choice of this run has said before; a run begins with `kernels.begin`."""
        new = [line for line in self.lines() if line not in _said]
        _said.update(new)
        return new


def begin() -> None:
    """A run begins: its first lines say what is used, also where another run in this process has said it."""
    _said.clear()


def use(mode: str, setting: Setting | None = None, without: Iterable[str] = ()) -> Choice:
    """Fill the table for models of a setting: "plain" leaves it empty, "fast" takes every accelerator that is right.

    without: names of accelerators that another process of the run has set aside. What was once wrong stays aside.
    """
    _table.clear()
    choice = Choice()
    if mode == "plain" or setting is None:
        return choice
    for module, error in load(setting.device).items():
        choice.set_aside[module] = f"{error}: running without {module}"
    setting = replace(setting, shape=small(setting.shape))
    recorded = read_record()
    notes: dict[str, str] = {}  # edits of definitions that run as they stand anyway
    for one in accelerators:
        if one.computes not in definitions or one.name in without:
            continue
        usable = one.available(setting.device)
        edited = _edited(one.stands_for, recorded.get(one.name, {}))
        if isinstance(usable, str):  # why it cannot be used here
            choice.set_aside[one.name] = usable
        elif edited and usable:
            how = f"running {one.computes} as it stands, without {one.name}"
            choice.set_aside[one.name] = f"{edited}: {how}"
        elif edited:  # it would not be used on this device, but the edit is worth a line
            notes[one.computes] = edited
        elif usable and (wrong := _wrong(one, setting)):
            choice.set_aside[one.name] = wrong
        elif usable:
            choice.in_use.setdefault(one.computes, []).append(one.name)
    computed = {one.computes for one in accelerators}
    for name in (definitions.keys() & recorded.keys()) - computed:  # nothing accelerates them
        if edited := _edited((name,), recorded[name]):
            notes[name] = edited
    for name, edited in sorted(notes.items()):
        if not any(edited in line for line in choice.set_aside.values()):
            choice.set_aside[name] = f"{edited}: running {name} as it stands"
    for one in accelerators:
        if one.name in choice.in_use.get(one.computes, ()):
            _table.setdefault(one.computes, []).append(one)
    if wrong := _wrong_together(setting):
        for name in [name for name in choice.in_use if name.startswith("model.")]:
            del choice.in_use[name], _table[name]
        choice.set_aside["model"] = wrong
    return choice


def load(device: torch.device | None = None) -> dict[str, str]:
    """Import the files with accelerators, those of a device alone if one is given, in the order of MODULES.

    The decoders import generate.py. They are loaded where a run has imported it. Returns {file: error} of those that
    cannot be imported: they use a name that an edit has removed.
    """
    errors: dict[str, str] = {}
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for module in MODULES:
        on_gpu = module.startswith(("kernels.triton.", "kernels.flex"))
        if device is not None and on_gpu and not interpreted and device.type != "cuda":
            continue
        if not module.endswith(".decoder") or "generate.make_decoder" in definitions:
            try:
                importlib.import_module(module)
            except (ImportError, AttributeError) as error:
                errors[module] = str(error).partition(" (")[0]
    place = {module: number for number, module in enumerate(MODULES)}
    accelerators.sort(key=lambda one: place.get(one.function.__module__, len(place)))
    return errors


def read_record() -> dict[str, dict[str, str]]:
    """The recorded fingerprints; {} where the file is missing or damaged, so that no claim holds."""
    try:
        return json.loads(FINGERPRINTS.read_text())
    except (OSError, ValueError):
        return {}


def _edited(names: tuple[str, ...], recorded: dict[str, str]) -> str:
    """What in the code of these definitions is not the code that was proved, or ""."""
    if not recorded:
        return f"{FINGERPRINTS.name} has no record of {names[0]} (python -m kernels writes it)"
    try:
        now = fingerprints_of(names)
    except (NoSource, LookupError) as error:
        return str(error)
    # First other code under the same name, then what is no longer used, then what is new.
    changed = [name for name in recorded if now.get(name, recorded[name]) != recorded[name]]
    changed += [name for name in recorded if name not in now]
    changed += [name for name in now if name not in recorded]
    return f"{changed[0]} was edited" if changed else ""


def fingerprints_of(names: Iterable[str]) -> dict[str, str]:
    """{name: hash} of all code that some definitions use. Raises NoSource, LookupError."""
    parts: dict[str, str] = {}
    for name in names:
        parts |= expand(name)
    return dict(sorted(parts.items()))


def _wrong(one: Accelerator, setting: Setting) -> str:
    """Why an accelerator's numbers are not those of its definition, or "". Checked once for a setting."""
    key = f"{one.name} {setting}"
    if one.name in _failed or key in _right:
        return _failed.get(one.name, "")
    try:
        if one.error:
            worst = one.error(one, setting)
        else:
            worst = difference(definitions[one.computes], one, setting)
    except Exception as error:  # a compiler or a driver may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        _failed[one.name] = f"{one.name} fails ({reason}): running {one.computes} as it stands"
    else:
        if worst <= setting.tolerance:
            _right.add(key)
            return ""
        what = f"{one.name} is off by {worst:.1e}"
        _failed[one.name] = f"{what}: running {one.computes} as it stands"
    return _failed[one.name]


def _wrong_together(setting: Setting) -> str:
    """Why a small model computes something else with what is in use, or "": hidden states and all gradients."""
    key = f"model {setting} {sorted(_table)}"
    if key not in _right and any(name.startswith("model.") for name in _table):
        try:
            args = importlib.import_module("kernels.cases").model_case(setting)
            with plain():
                expected = _values(_forward, args)
            worst = _gap(expected, _values(_forward, args))
        except Exception as error:  # an edited model may want other arguments
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return f"a small model fails ({reason}): running model.py as it stands"
        if not worst <= setting.tolerance:
            return f"a small model is off by {worst:.1e}: running model.py as it stands"
        _right.add(key)
    return ""


def _forward(model: nn.Module, ids: Tensor, layout) -> Tensor:
    return model(ids, layout)


def difference(function: Callable, one: Accelerator, setting: Setting) -> float:
    """The largest difference of values and gradients over an accelerator's cases, as a share of the largest value."""
    worst = 0.0
    for args in one.cases(setting):
        if not one.takes(*args):
            continue
        with plain():
            expected = _values(function, args)
        worst = max(worst, _gap(expected, _values(one.function, args)))
    return worst


def _gap(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, each as a share of the largest value expected."""
    if len(expected) != len(found):
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        scale = max(float(a.abs().max()), 1e-3) if a.numel() else 1.0
        gap = float((a - b).abs().max()) if a.numel() else 0.0
        worst = max(worst, gap / scale if gap == gap else float("inf"))
    return worst


def _values(function: Callable, args: tuple) -> list[Tensor]:
    """What a call returns and the gradients that it gives, as a flat list of float64 tensors."""
    leaves = [leaf for arg in args for leaf in _leaves(arg)]
    for leaf in leaves:
        leaf.grad = None
    results = list(_tensors(function(*args)))
    values = [result.detach().double() for result in results]
    live = [result for result in results if result.requires_grad]
    if live and leaves:
        factors = [torch.linspace(0.5, 1.5, r.numel(), device=r.device).view_as(r) for r in live]
        sum((r.float() * f).sum() for r, f in zip(live, factors, strict=True)).backward()
        values += [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [value.double() for value in values]


def _leaves(value) -> Iterator[Tensor]:
    """Tensors of an argument that require a gradient, a module's parameters included."""
    if isinstance(value, nn.Module):
        yield from (p for p in value.parameters() if p.requires_grad)
    elif isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
        yield value


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _tensors(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def record() -> dict[str, dict[str, str]]:
    """Write the fingerprints of all loaded accelerators; `python -m kernels` calls it after the proof."""
    if errors := load():
        raise ImportError(", ".join(errors.values()))
    found = {name: fingerprints_of([name]) for name in definitions}
    found |= {one.name: fingerprints_of(one.stands_for) for one in accelerators}
    FINGERPRINTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found
