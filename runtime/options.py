"""Options of a program: a dataclass, changed by TOML files, changed by the command line.

@dataclass
class Config:
    # optimization                                        (a comment line is a heading of --help)
    lr: float = option(1e-3, "peak learning rate")

config = parse(Config)          python train.py --config run.toml --lr 3e-4
"""

import copy
import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
import textwrap
import tomllib
import types
import typing
from pathlib import Path

from data.io import InputError


def option(default, help: str):
    """A dataclass field with a default and the sentence that --help prints."""
    if isinstance(default, list | dict):
        return dataclasses.field(
            default_factory=lambda: copy.copy(default), metadata={"help": help}
        )
    return dataclasses.field(default=default, metadata={"help": help})


def parse(Config, argv: list[str] | None = None, description: str = ""):
    """An instance of the dataclass `Config`: its defaults, changed by `--config FILE.toml` (several: the later wins),
    then by `--name value` or `--name=value`.

    Lists are written a,b,c; dicts a=0.3,b=0.7; bools true or false, --name alone is true; no value, where the type is
    Optional, none.
    Raises InputError.
    """
    argv = sys.argv[1:] if argv is None else argv
    kinds = typing.get_type_hints(Config)
    names = [field.name for field in dataclasses.fields(Config)]
    if "--help" in argv or "-h" in argv:
        if local_main():
            print(usage(Config, description))
        sys.exit(0)
    files, given = [], []
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
            raise InputError(
                f"--{name}: unknown option; {_nearest(name, ['config', *names], '--')}"
            )
        if not equals:
            bare = not rest or rest[0].startswith("--")
            if bare and kinds.get(name) not in (bool, bool | None):
                raise InputError(
                    f"--{name}: no value given; write --{name} value or --{name}=value"
                )
            text = "true" if bare else rest.pop(0)
        (files if name == "config" else given).append((name, text))

    values = {}
    for _, file in files:
        for name, value in read_toml(file).items():
            if name not in names:
                raise InputError(f"{file}: unknown key {name!r}; {_nearest(name, names)}")
            values[name] = _convert(
                value, kinds[name], False, f"{file}: {name} = {toml_value(value)}"
            )
    for name, text in given:
        values[name] = _convert(text, kinds[name], True, f"--{name} {text}")
    return Config(**values)


def to_toml(config) -> str:
    """The options as a TOML file that `parse` reads back to the same values."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in vars(config).items())


def usage(Config, description: str = "") -> str:
    """The text of --help. A comment line of its own in the class is the heading of the options below it."""
    try:
        source = textwrap.dedent(inspect.getsource(Config)).splitlines()
    except (OSError, TypeError):
        source = []
    kinds, headings, heading = typing.get_type_hints(Config), {}, ""
    for line in map(str.strip, source):
        if line.startswith("#"):
            heading = line.strip("# ")
        elif (match := re.match(r"(\w+)\s*:", line)) and match[1] in kinds:
            headings[match[1]] = heading
    lines = [description.strip(), ""] if description else []
    lines += ["options (the later wins: default, --config files in their order, command line)"]
    lines += ["  --config FILE.toml         a file of the options below, as name = value"]
    shown = ""
    for field, default in zip(dataclasses.fields(Config), vars(Config()).values(), strict=True):
        if headings.get(field.name, "") != shown:
            shown = headings[field.name]
            lines += ["", shown]
        start = f"  --{field.name} {_kind_name(kinds[field.name])}"
        lines.append(f"{start:<28} {field.metadata.get('help', '')} [{_as_text(default)}]")
    return "\n".join(lines)


def _as_text(value) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={_as_text(item)}" for name, item in value.items())
    return toml_value(value).strip('"') if value is None or isinstance(value, bool) else str(value)


def _kind_name(kind) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _kind_name(inner[0]) + "|none"
    named = {bool: "true|false", int: "N", float: "X", str: "TEXT", Path: "PATH"}
    if origin is list:
        return f"{named[inner[0]]},.."
    return f"NAME={named[inner[1]]},.." if origin is dict else named[kind]


def _convert(value, kind, text: bool, where: str):
    """A value of the annotated type, from command-line text or from a TOML value. `where` begins the InputError."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # Optional
        return None if value == "none" else _convert(value, inner[0], text, where)
    if origin is list:
        if text:
            value = value.split(",") if value else []
        if not isinstance(value, list):
            raise InputError(f"{where}: needs a list")
        return [_convert(item, inner[0], text, where) for item in value]
    if origin is dict:
        if text:
            pairs = [item.partition("=") for item in value.split(",")] if value else []
            value = {name: item for name, equals, item in pairs if name and equals}
            if len(value) < len(pairs):
                raise InputError(f"{where}: needs name=value,name=value with every name once")
        if not isinstance(value, dict):
            raise InputError(f"{where}: needs a table of name = value")
        return {name: _convert(item, inner[1], text, where) for name, item in value.items()}
    if kind is bool:
        value = {"true": True, "false": False}.get(value, value) if text else value
        if not isinstance(value, bool):
            raise InputError(f"{where}: needs true or false")
    elif kind in (int, float):
        if text:
            try:
                value = kind(value)
            except ValueError:
                pass
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise InputError(f"{where}: needs {'an integer' if kind is int else 'a number'}")
    elif kind in (str, Path):
        if not isinstance(value, str):
            raise InputError(f"{where}: needs a text in quotes")
    else:
        raise TypeError(f"an option cannot have the type {kind}")
    return kind(value)


def toml_value(value) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{toml_value(str(name))} = {toml_value(item)}" for name, item in value.items()
            )
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # TOML escapes DEL, JSON does not


def read_toml(path) -> dict:
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
    """True for the process that may speak: the first of each machine (an error may concern one machine's files)."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
