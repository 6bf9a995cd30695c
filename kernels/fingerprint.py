"""Fingerprints of definitions: a hash of what a function computes, not of how its code is laid out.

The fingerprint of a definition covers its own code and, found automatically, all that the code uses of ours: helper
functions, classes with their methods, module constants, default values, closures. Comments, docstrings, annotations,
line breaks, quotes and redundant brackets do not count. It is the same on every Python version.

    expand("model.rms_norm")    ->  {"model.rms_norm": "0f3c...", "model.EPS": "1e-06"}

Code without source raises NoSource: a function that was typed into `exec`, or one whose file has changed since it was
loaded.
"""

import ast
import functools
import hashlib
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In an environment where this project is installed, our files lie beside those of other packages.
OURS = (
    "batch data eval evaluation generate kernels model presets reward rollout runtime tools".split()
)
PLAIN = (int, float, str, bytes, bool, type(None))
LAYOUT = ("ctx", "kind", "type_comment", "type_params", "annotation", "returns")  # not computed
LIBRARIES = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)


class NoSource(Exception):
    """The code of a definition cannot be read."""


def module_name(module: str) -> str:
    """The name that a module is imported by, also where it runs as a program (`__main__`)."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if module == "__main__" and file and Path(file).resolve().is_relative_to(ROOT):
        return ".".join(Path(file).resolve().relative_to(ROOT).with_suffix("").parts)
    return module


def resolve(name: str):
    """The object that a dotted name such as "model.Block.forward" stands for now.

    Raises LookupError where its module is not loaded or has no such attribute.
    """
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        loaded = "__main__" if module_name("__main__") == module else module
        if loaded in sys.modules:
            try:
                return unwrap(functools.reduce(getattr, parts[cut:], sys.modules[loaded]))
            except AttributeError:
                break
    raise LookupError(f"{name} is not defined")


def unwrap(value):
    """The function behind `@definition`, a property, a static or a class method."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, staticmethod | classmethod | types.MethodType):
        value = value.__func__
    # functools.wraps copies attributes: a function around a definition is not that definition.
    if isinstance(value, types.FunctionType) and value.__dict__.get("seam") is value:
        return value.definition
    return value


def name_of(value) -> str:
    return f"{module_name(value.__module__)}.{value.__qualname__}"


def expand(name: str) -> dict[str, str]:
    """{name: hash or value} of a definition and of all that its code uses of ours."""
    parts: dict[str, str] = {}
    _add(name, resolve(name), parts)
    return parts


def _add(name: str, value, parts: dict[str, str]) -> None:
    """Add the fingerprint of `value`, and of what it uses, to `parts`."""
    if name in parts:
        return
    value = unwrap(value)
    if _is_plain(value):
        parts[name] = _text(value)
    elif isinstance(value, type):
        if not _is_library(value.__module__):
            parts[name] = "class " + ", ".join(base.__qualname__ for base in value.__bases__)
            for base in value.__bases__:
                _add(name_of(base), base, parts)
            for key, member in sorted(vars(value).items()):
                if not _is_generated(value, key):
                    _add(f"{name}.{key}", member, parts)
    elif _is_decorated(value):  # by functools.cache or torch.no_grad, for example
        parts[name] = f"decorated by {type(value).__name__}"
        _add(f"{name}.__wrapped__", value.__wrapped__, parts)
    elif isinstance(value, types.FunctionType):
        if not (_is_library(value.__module__) or _is_library_file(value.__code__.co_filename)):
            node = _node(name, value.__code__)
            defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            text = f"({_canonical(node)!r}, {_text([d for d in defaults if _is_plain(d)])})"
            parts[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
            for used, thing in _used(value, node):
                _add(used, thing, parts)


def _used(function: types.FunctionType, node: ast.AST) -> Iterator[tuple[str, object]]:
    """(name, object) of the globals, of attributes of our modules, and of closure cells that the code uses."""
    module = module_name(function.__module__)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        if name == "__class__":  # what super() reads
            continue
        try:
            yield f"{module}.{function.__qualname__}<{name}>", cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    for part in _walk(node):
        if isinstance(part, ast.Name) and part.id in function.__globals__:
            value = function.__globals__[part.id]
            if not isinstance(value, types.ModuleType):
                yield _home(module, part.id, value), value
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            value = function.__globals__.get(part.value.id)
            if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
                if hasattr(value, part.attr):
                    member = getattr(value, part.attr)
                    yield _home(value.__name__, part.attr, member), member


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of some code, those of annotations left out."""
    yield node
    for field, value in ast.iter_fields(node):
        if field not in LAYOUT:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST):
                    yield from _walk(part)


def _home(module: str, name: str, value) -> str:
    """The name of a global: where it was defined if it still stands there, else where it is used."""
    value = unwrap(value)
    if isinstance(value, types.FunctionType | type) and "<locals>" not in value.__qualname__:
        return name_of(value)
    return f"{module}.{name}"


def _is_plain(value) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return isinstance(value, PLAIN)


def _text(value) -> str:
    """The repr of a plain value; that of a set in order, which Python changes from process to process."""
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_text, value))) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        text = ", ".join(map(_text, value))
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    return repr(value)


def _is_decorated(value) -> bool:
    """Is it a function of ours inside a wrapper of a library?"""
    inner = getattr(value, "__wrapped__", None)
    if not isinstance(inner, types.FunctionType) or _is_library(inner.__module__):
        return False
    code = getattr(value, "__code__", None)
    return code is None or _is_library_file(code.co_filename)


def _is_generated(owner: type, key: str) -> bool:
    """Members that Python or @dataclass made, which have no code of their own."""
    if key in ("__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__"):
        return True
    member = unwrap(vars(owner)[key])
    made = isinstance(member, types.FunctionType) and member.__code__.co_filename == "<string>"
    return key.startswith("__") and (made or not isinstance(member, types.FunctionType))


@functools.cache
def _is_library(module: str) -> bool:
    """Is a module part of Python, of an installed package, or of kernels/, which repeats and defines nothing?"""
    top = (module or "").partition(".")[0]  # code of `exec` may have no module
    if top == "kernels":  # the code that chooses
        return True
    if top in sys.stdlib_module_names:
        return top != "__main__"
    file = getattr(sys.modules.get(top), "__file__", None)
    return bool(file) and _is_library_file(file)


@functools.cache
def _is_library_file(file: str) -> bool:
    path = Path(file).resolve()
    if path.is_relative_to(ROOT):
        name = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if name in OURS or name.startswith("train_"):
            return False
    return file.startswith("<frozen") or str(path).startswith(LIBRARIES)


@functools.cache
def _read(file: str, source: str) -> tuple[dict[int, list[ast.AST]], set[types.CodeType]]:
    """Functions of a file by the line of their first decorator, `def` or `lambda`; and the code of all of them."""
    tree = ast.parse(source)
    found: dict[int, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            found.setdefault(first, []).append(node)
    codes: set[types.CodeType] = set()
    waiting = [compile(source, file, "exec", dont_inherit=True)]
    while waiting:
        inner = [x for x in waiting.pop().co_consts if isinstance(x, types.CodeType)]
        codes.update(inner)
        waiting += inner
    return found, codes


def _node(name: str, code: types.CodeType) -> ast.AST:
    """The syntax tree of a function. Raises NoSource where its file does not hold the code that runs."""
    linecache.checkcache(code.co_filename)
    source = "".join(linecache.getlines(code.co_filename))
    try:
        found, codes = _read(code.co_filename, source)
    except (SyntaxError, ValueError):  # ValueError: a zero byte
        found, codes = {}, set()
    nodes = found.get(code.co_firstlineno, [])
    nodes = [node for node in nodes if getattr(node, "name", "<lambda>") == code.co_name]
    if len(nodes) != 1 or code not in codes:
        raise NoSource(f"{name} has no source that can be read, or its file has changed since")
    return nodes[0]


def _canonical(node):
    """The code as nested tuples, without docstrings, decorators' layout, positions and empty fields."""
    if isinstance(node, list):
        return [_canonical(part) for part in node]
    if not isinstance(node, ast.AST):
        return node
    fields = []
    for field in node._fields:
        value = getattr(node, field, None)
        if field in LAYOUT or value in (None, []):
            continue
        if isinstance(node, ast.JoinedStr):  # Python 3.12.1 puts empty texts between its parts
            value = [part for part in value if getattr(part, "value", None) != ""]
        if field == "body" and isinstance(value, list):
            value = [part for part in value if not _is_docstring(part)]
        fields.append((field, _canonical(value)))
    if isinstance(node, ast.Constant):
        fields = [("value", repr(node.value))]
    return (type(node).__name__, fields)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
