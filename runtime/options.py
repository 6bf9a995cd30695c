"""Options of a program: a dataclass, changed by TOML files, then by the command line.

@dataclass
class Config:
    # optimization                                        (a comment line is a heading of --help)
    lr: float = option(1e-3, "peak learning rate", least=0)

config = parse(Config)          python train.py --config run.toml --lr 3e-4

Each option says which values it takes, where it is declared. `parse` refuses every other value.
"""

import copy
import dataclasses
import difflib
import inspect
import json
import math
import operator
import os
import re
import sys
import textwrap
import tomllib
import types
import typing
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from data.io import InputError

LIMITS = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def option(
    default, help: str, required: bool = False, choices: Collection = (), **limits: float
) -> Any:
    """A dataclass field: its default, the sentence that --help prints, and the values that it takes.

    required: the value must not be empty. choices: the only values.
    limits: any of least=, above= (without the bound), most=, below= (without the bound).
    For a list or a dict, choices and limits hold for each element.
    Numbers are always finite, and integers fit in 64 bits. None passes where the type is Optional.
    """
    unknown = limits.keys() - LIMITS.keys()
    if unknown:
        raise TypeError(f"option() has no limit {unknown}; use {', '.join(LIMITS)}")
    metadata = {"help": help, "required": required, "choices": tuple(choices), **limits}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(
    Config, argv: list[str] | None = None, description: str = "", partial: bool = False
) -> Any:
    """An instance of the dataclass `Config`.

    Its defaults are changed by `--config FILE.toml` (several: the later wins), then by `--name value` or `--name=value`.
    Lists are written a,b,c; dicts a=0.3,b=0.7; bools true or false (`--name` alone is true); None is written none.
    partial: required options may be missing; the caller fills them in.

    Raises InputError: one line with the option (or file and key), its value and what to do.
    """
    argv = sys.argv[1:] if argv is None else argv
    kinds = typing.get_type_hints(Config)
    names = [field.name for field in dataclasses.fields(Config)]
    if "--help" in argv or "-h" in argv:
        if local_main():
            print(usage(Config, description))
        sys.exit(0)
    files, texts = _split(argv, kinds, names)

    values, places = {}, {}
    for file in files:
        for name, value in read_toml(file).items():
            if name not in names:
                raise InputError(f"{file}: unknown key {name!r}; {_nearest(name, names)}")
            places[name] = f"{file}: {name} = {toml_value(value)}"
            values[name] = _convert(value, kinds[name], False, places[name])
    for name, text in texts.items():
        places[name] = f"--{name} {text}"
        values[name] = _convert(text, kinds[name], True, places[name])
    config = Config(**values)
    check(config, partial, places)
    return config


def _split(argv: list[str], kinds: dict, names: list[str]) -> tuple[list, dict]:
    """Split a command line into the files of --config and the text of every other option."""
    files: list[str] = []
    texts: dict[str, str] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            raise InputError(
                f"unexpected argument {token!r}; options are written --name value (--help lists them)"
            )
        name, equals, text = token[2:].partition("=")
        name = name.replace("-", "_")
        if name != "config" and name not in names:
            near = _nearest(name, ["config", *names], "--")
            raise InputError(f"--{name}: unknown option; {near}")
        if not equals:
            bare = not rest or rest[0].startswith("--")
            if bare and kinds.get(name) not in (bool, bool | None):
                raise InputError(
                    f"--{name}: no value given; write --{name} value or --{name}=value"
                )
            text = "true" if bare else rest.pop(0)
        if name == "config":
            files.append(text)
        elif name in texts:
            raise InputError(f"--{name} {text}: --{name} is given twice; give it once")
        else:
            texts[name] = text
    return files, texts


def check(config, partial: bool = False, places: dict[str, str] | None = None) -> None:
    """Raise InputError where an option has a value that its declaration does not allow.

    partial: required options may be missing. places: how each option was given; it begins the message.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value in ("", [], {}, None) and field.metadata.get("required"):
            if partial:
                continue
            raise InputError(f"--{field.name} is needed: {field.metadata['help']}")
        elements = [value]
        if isinstance(value, list | dict):
            elements = list(value.values()) if isinstance(value, dict) else value
        for element in elements:
            if fault := _fault(element, field.metadata):
                place = (places or {}).get(field.name, f"--{field.name} {_as_text(value)}")
                raise InputError(f"{place}: {fault}")


def _fault(value, declared) -> str:
    """What is wrong with one value and what to do; empty where nothing is."""
    if value is None:
        return ""
    choices = declared.get("choices")
    if choices and value not in choices:
        return f"unknown; choose {_alternatives(choices)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    whole = isinstance(value, int)
    if whole and abs(value) >= 2**63:
        return "too large; give an integer of at most 64 bits"
    inside = [LIMITS[name][0](value, declared[name]) for name in LIMITS if name in declared]
    if math.isfinite(value) and all(inside):
        return ""
    kind = "an integer" if whole else "a finite number"
    return f"out of range; give {kind} {_allowed(declared)}".rstrip()


def _allowed(declared) -> str:
    """The range of a number in words: "at least 0 and below 1", "from 0 to 1"."""
    if "least" in declared and "most" in declared:
        return f"from {declared['least']} to {declared['most']}"
    parts = [f"{LIMITS[name][1]} {declared[name]}" for name in LIMITS if name in declared]
    return " and ".join(parts)


def _alternatives(choices: Iterable) -> str:
    """a, b or c"""
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}" if first else last


def to_toml(config) -> str:
    """The options as a TOML file that `parse` reads back to the same values."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in vars(config).items())


def usage(Config, description: str = "") -> str:
    """The text of --help. A comment line in the class is the heading of the options below it."""
    # A class comes before the classes that it inherits options from.
    kinds = typing.get_type_hints(Config)
    headings: dict[str, str] = {}
    for part in Config.__mro__[:-1]:
        heading = ""
        try:
            source = textwrap.dedent(inspect.getsource(part)).splitlines()
        except (OSError, TypeError):
            source = []
        for line in map(str.strip, source):
            if line.startswith("#"):
                heading = line.strip("# ")
            elif (match := re.match(r"(\w+)\s*:", line)) and match[1] in kinds:
                headings.setdefault(match[1], heading)
    fields = {field.name: field for field in dataclasses.fields(Config)}
    names = [*headings, *(name for name in fields if name not in headings)]

    lines = [description.strip(), ""] if description else []
    lines += ["options (the later wins: default, --config files in their order, command line)"]
    lines += ["  --config FILE.toml         a file of the options below, as name = value"]
    shown = ""
    defaults = Config()
    for name in names:
        field, default = fields[name], getattr(defaults, name)
        if headings.get(name, "") != shown:
            shown = headings[name]
            lines += ["", shown]
        start = f"  --{name} {_kind_name(kinds[name])}"
        text = f"{field.metadata.get('help', '')} [{_note(field, default)}]"
        first, *rest = textwrap.wrap(text, 71, break_long_words=False, break_on_hyphens=False)
        lines += [f"{start:<28} {first}", *(" " * 29 + line for line in rest)]
    return "\n".join(lines)


def _note(field, default) -> str:
    """What --help prints in brackets: the default, the choices, the range."""
    declared = field.metadata
    needed = declared.get("required") and default in ("", [], {}, None)
    parts = ["needed" if needed else _as_text(default)]
    if declared.get("choices"):
        parts.append(_alternatives(declared["choices"]))
    if _allowed(declared):
        parts.append(_allowed(declared))
    return "; ".join(parts)


def _as_text(value) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={_as_text(item)}" for name, item in value.items())
    if value is None or isinstance(value, bool):
        return toml_value(value).strip('"')
    return str(value)


def _kind_name(kind) -> str:
    """A type as --help shows it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _kind_name(inner[0]) + "|none"
    named = {bool: "true|false", int: "N", float: "X", str: "TEXT", Path: "PATH"}
    if origin is list:
        return f"{named[inner[0]]},.."
    return f"NAME={named[inner[1]]},.." if origin is dict else named[kind]


def _convert(value, kind, text: bool, place: str):
    """A value of the annotated type, from command-line text or from a TOML value.

    place: how it was given; it begins the InputError.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # Optional
        return None if value == "none" else _convert(value, inner[0], text, place)
    if origin is list:
        if text:
            value = value.split(",") if value else []
        if not isinstance(value, list):
            raise InputError(f"{place}: needs a list")
        return [_convert(item, inner[0], text, place) for item in value]
    if origin is dict:
        if text:
            pairs = [item.partition("=") for item in value.split(",")] if value else []
            value = {name: item for name, equals, item in pairs if name and equals}
            if len(value) < len(pairs):
                raise InputError(f"{place}: needs name=value,name=value with every name once")
        if not isinstance(value, dict):
            raise InputError(f"{place}: needs a table of name = value")
        return {name: _convert(item, inner[1], text, place) for name, item in value.items()}
    if kind is bool:
        value = {"true": True, "false": False}.get(value, value) if text else value
        if not isinstance(value, bool):
            raise InputError(f"{place}: needs true or false")
    elif kind in (int, float):
        number = isinstance(value, int | kind) and not isinstance(value, bool)
        try:
            if text or number:
                return kind(value)
        except (ValueError, OverflowError):
            pass
        raise InputError(f"{place}: needs {'an integer' if kind is int else 'a number'}")
    elif kind in (str, Path):
        if not isinstance(value, str):
            raise InputError(f"{place}: needs a text in quotes")
    else:
        raise TypeError(f"an option cannot have the type {kind}")
    return kind(value)


def toml_value(value) -> str:
    """A value as TOML. None is the text "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        pairs = (f"{toml_value(str(name))} = {toml_value(item)}" for name, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    text = json.dumps(str(value), ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # TOML escapes DEL, JSON does not


def read_toml(path) -> dict:
    """The table in a TOML file. Raises InputError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the path of a TOML file"
        ) from None
    except ValueError as error:  # not TOML or not UTF-8
        raise InputError(f"{path}: not a TOML file: {error}") from None


def _nearest(name: str, names: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {prefix}{near[0]}?" if near else "--help lists the options"


def local_main() -> bool:
    """True for the first process of each machine: the one that prints (its files may be that machine's alone)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
