"""Jinja for the chat templates of models, set up as transformers does.

A template is a program from elsewhere. It runs in Jinja's sandbox, with a limit of time and memory.
"""

import json
import re
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from data.io import InputError

SECONDS, MEMORY = 10, 2**30  # what a template may take for a conversation; bytes
# Private characters that stand where a {% generation %} block begins and ends
MARK = "\ue124\ue127"


def compile_template(text: str, where: str) -> Callable[..., str]:
    """The function that renders a template with variables, given by name. Both raise InputError, which
    begins with `where`, the template's file."""
    environment = _environment()
    try:
        with _limits():
            template = environment.from_string(text)
    except Exception as error:
        line = getattr(error, "lineno", 1)
        reason = f"not a Jinja template ({_reason(error)}); get the file again"
        raise InputError(f"{where}:{line}: {reason}") from None

    def render(**variables) -> str:
        try:
            with _limits():
                return template.render(**variables)
        except Exception as error:  # a template is a program, which may fail in any way
            reason = f"the chat template fails ({_reason(error)})"
            advice = "correct the template, or use another --template"
            raise InputError(f"{where}: {reason}; {advice}") from None

    return render


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _jinja():
    """The module jinja2. Raises InputError where it is missing, or has known holes in its sandbox."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        jinja2 = None
    if jinja2 is None or [*map(int, re.findall(r"\d+", version("jinja2"))[:3])] < [3, 1, 6]:
        raise InputError("--template chat needs jinja2 3.1.6 or later: pip install -e .[chat]")
    return jinja2


@lru_cache
def _environment():
    """The environment of all templates: a sandbox, with the functions that templates use."""
    jinja2 = _jinja()

    class Generation(jinja2.ext.Extension):
        """{% generation %} ... {% endgeneration %}: what the model writes, here between two MARKs."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("mark"), [], [], body, lineno=line)

        def mark(self, caller):
            return f"{MARK}{caller()}{MARK}"

    class Namespace(jinja2.utils.Namespace):
        """A namespace without names of Python's internals, by which a template could leave the sandbox."""

        def __init__(*args, **kwargs):
            self, *args = args
            jinja2.utils.Namespace.__init__(self)
            for name, value in dict(*args, **kwargs).items():
                self[name] = value

        def __setitem__(self, name, value):
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"the name {name!r} is not allowed")
            jinja2.utils.Namespace.__setitem__(self, name, value)

    class Dict:
        """What templates use of `dict`. The type itself has more."""

        def __call__(self, *args, **kwargs):
            return dict(*args, **kwargs)

        def fromkeys(self, *args):
            return dict.fromkeys(*args)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "namespace": Namespace,
        "dict": Dict(),
    }
    return environment


@contextmanager
def _limits():
    """Raise TimeoutError or MemoryError in what runs longer than SECONDS, or takes more than MEMORY."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"it runs longer than {SECONDS} seconds")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        if (status := Path("/proc/self/statm")).exists():
            most = int(status.read_text().split()[0]) * resource.getpagesize() + MEMORY
            limits = [most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
            resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
        yield
    except MemoryError:
        raise MemoryError(f"it takes more than {MEMORY // 2**30} GB") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
