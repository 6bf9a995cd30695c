"""The sandbox: programs try to pass every limit."""

import importlib.util
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import data.sandbox.sandbox
from data.io import InputError
from data.sandbox import isolation
from data.sandbox.sandbox import REQUIRED, Result, Sandbox

ROOT = Path(__file__).parents[3]
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, cpu_seconds=1, memory_mb=256, output_bytes=10_000) as sandbox:
        yield sandbox


def test_result(sandbox):
    assert sandbox.run("print(1+1)") == Result("ok", "2\n", "")
    assert (
        sandbox.run("if __name__ == '__main__':\n    print('中', '\\ud800')").stdout
        == "中 \\ud800\n"
    )
    assert sandbox.run("def f(n): return n * f(n - 1) if n else 1\nprint(f(5))").stdout == "120\n"
    assert sandbox.run("").status == "ok"


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("print(1", "error", "SyntaxError: '(' was never closed"),
        ("x = \0", "error", "SyntaxError: source code string cannot contain null bytes"),
        ("print(3)\n1/0", "error", "ZeroDivisionError: division by zero"),
        (
            "def f(n): return f(n + 1)\nf(0)",
            "error",
            "RecursionError: maximum recursion depth exceeded",
        ),
        ("exit(3)", "error", "SystemExit: 3"),
        ("exit()", "ok", ""),
        ("input()", "error", "EOFError: EOF when reading a line"),
        ("class E(Exception):\n    def __str__(self): 1/0\nraise E", "error", ""),
        ("while True: pass", "timeout", ""),
        (
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            "timeout",
            "",
        ),
        (
            "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass",
            "timeout",
            "",
        ),
        ("import time\ntime.sleep(1000)", "timeout", ""),
        ("import os, time\nos.close(1); os.close(3)\nwhile True: pass", "timeout", ""),
        ("while True: print('x' * 1000)", "output", ""),
        ("x = bytearray(10**10)", "memory", ""),
        ("x = []\nwhile True: x.append('a' * 10**6 + str(len(x)))", "memory", ""),
        ("import os\nos.abort()", "error", ""),
    ],
)
def test_status(sandbox, code, status, error):
    start = time.monotonic()
    result = sandbox.run(code)
    assert result.status == status, result
    assert error in result.error
    assert len(result.stdout) <= 10_000
    assert time.monotonic() - start < 15
    assert sandbox.run("print(1)").status == "ok"  # the worker works as before


def test_output_before_an_error_is_kept(sandbox):
    assert sandbox.run("print(3)\n1/0").stdout == "3\n"


def test_fork_bomb_is_refused(sandbox):
    before = _processes()
    assert sandbox.run("import os\nwhile True: os.fork()").status == "error"
    code = "import os\nfor _ in range(1000):\n    try: os.fork()\n    except OSError: pass\nprint('end')"
    assert sandbox.run(code) == Result("ok", "end\n", "")
    assert "not allowed" in sandbox.run("import subprocess\nsubprocess.run(['ls'])").error
    assert _processes() <= before + 3  # other tests of this machine may start some


def _processes():
    return sum(name.isdigit() for name in os.listdir("/proc")) if os.path.isdir("/proc") else 0


def test_environment_is_empty(sandbox, monkeypatch):
    monkeypatch.setenv("TRAINER_SECRET", "hunter2")
    with Sandbox(workers=1) as fresh:
        assert fresh.run("import os\nprint(dict(os.environ))").stdout == "{}\n"
    code = """import os
for descriptor in range(256):
    try:
        os.fstat(descriptor)
        print(descriptor)
    except OSError:
        pass
"""
    assert sandbox.run(code).stdout.split() == [
        "0",
        "1",
        "2",
        "3",
    ]  # descriptor 3 carries the error line


def test_network_is_refused(sandbox):
    for code in (
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 80))",
        "from urllib.request import urlopen\nurlopen('http://127.0.0.1')",
    ):
        assert sandbox.run(code).status == "error"


def test_signals_do_not_reach_others(sandbox):
    assert "not allowed" in sandbox.run("import os\nos.kill(os.getppid(), 9)").error


def test_files_stay_in_scratch_and_are_gone(sandbox, tmp_path):
    code = "import os\nopen('a.txt', 'w').write('hi')\nos.mkdir('d')\nos.rename('a.txt', 'd/b')\n"
    result = sandbox.run(code + "print(open('d/b').read(), os.getcwd())")
    text, folder = result.stdout.split()
    assert text == "hi" and not os.path.exists(folder)
    secret = tmp_path / "test_set.jsonl"
    secret.write_text("42")
    path = str(secret)
    for attack in (
        f"open({path!r}).read()",
        f"open({path!r}, 'w')",
        f"import os; os.remove({path!r})",
        f"import os; os.symlink({path!r}, 'link'); open('link').read()",
        f"import os; os.listdir({str(tmp_path)!r})",
        "open('../x', 'w')",
    ):
        assert sandbox.run(attack).status == "error", attack
    assert secret.read_text() == "42"


def test_programs_do_not_see_one_another(sandbox):
    assert sandbox.run("import math\nmath.pi = 3\nx = 1\nopen('f', 'w')").status == "ok"
    for _ in range(3):
        result = sandbox.run("import math, os\nprint(math.pi, 'x' in globals(), os.listdir('.'))")
        assert result.stdout == "3.141592653589793 False []\n"


def test_same_program_same_output_in_every_server():
    code = "import random\nprint({'a', 'b', 'c', 'd'}, random.random(), hash('x'))"
    with Sandbox(workers=1) as first, Sandbox(workers=1) as second:
        assert first.run(code) == second.run(code) == first.run(code)


def test_run_many_keeps_order_and_runs_equal_programs_once(sandbox, monkeypatch):
    calls, run = [], sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda code: calls.append(code) or run(code))
    codes = [f"print({i % 7})" for i in range(30)] + ["1/0"]
    results = sandbox.run_many(codes)
    assert [r.stdout for r in results] == [f"{i % 7}\n" for i in range(30)] + [""]
    assert results[-1].status == "error"
    assert sorted(calls) == sorted(set(codes))
    assert sandbox.run_many([]) == []


def test_sympy_is_loaded(sandbox):
    code = (
        "import time\nt = time.perf_counter()\nimport sympy\nassert time.perf_counter() - t < 0.1\n"
    )
    assert (
        sandbox.run(code + "x = sympy.symbols('x')\nprint(sympy.solve(x**2 - 2))").stdout
        == "[-sqrt(2), sqrt(2)]\n"
    )


def test_costs_milliseconds(sandbox):
    for code in ("print(1+1)", "import sympy\nprint(sympy.Rational(1, 2) + 1)"):
        seconds = []
        for i in range(40):
            start = time.perf_counter()
            assert sandbox.run(f"{code} # {i}").status == "ok"
            seconds.append(time.perf_counter() - start)
        assert statistics.median(seconds) < 0.1, (
            seconds
        )  # about 5 ms; the bound is for a busy machine


def test_dead_server_is_restarted(sandbox):
    for server in sandbox._servers:
        server.process.send_signal(signal.SIGKILL)
    assert sandbox.run_many(["print(1)", "print(2)", "print(3)"]) == [
        Result("ok", f"{i}\n", "") for i in (1, 2, 3)
    ]


def test_programs_run_while_the_caller_goes_on():
    code = "import time; time.sleep(0.3); print(1)"
    with Sandbox(workers=1) as sandbox:
        began = time.monotonic()
        first, second = sandbox.start(code), sandbox.start("print(2)")
        assert time.monotonic() - began < 0.2 and not first.done()
        assert second.result() == sandbox.run("print(2)") and first.result() == Result(
            "ok", "1\n", ""
        )
        running, dropped = sandbox.start(code), sandbox.start("print(3)")
        while not running.running():
            time.sleep(0.01)
    assert running.result().stdout == "1\n" and dropped.cancelled()


def test_start_failure_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(RuntimeError, match="/no/such/python"):
        Sandbox(workers=1)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="No module named 'sympy'"):
        Sandbox(workers=2)


@linux
def test_servers_and_programs_end_with_a_killed_trainer():
    code = (
        "import threading, time\nfrom data.sandbox.sandbox import Sandbox\ns = Sandbox(workers=1, cpu_seconds=60)\n"
        "print(s._servers[0].process.pid, s._servers[0].scratch, flush=True)\n"
        "s.run('while True: pass')"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    server, scratch = trainer.stdout.readline().split()
    children = Path(f"/proc/{server}/task/{server}/children")
    deadline = time.monotonic() + 10
    while not children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.02)
    program = children.read_text().split()[0]
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    while any(map(_alive, (server, program))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(server) and not _alive(program)
    assert not os.path.exists(scratch)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@linux
def test_seccomp_by_itself(sandbox):
    """Without the audit hook, processes, exec, sockets and signals are refused, and threads are
    allowed."""
    if "seccomp" not in sandbox.isolation:
        pytest.skip("this kernel does not take the filter")
    code = """
import os, resource, socket, threading
from data.sandbox import isolation
isolation.call("prctl", 38, 1, 0, 0, 0)
isolation.apply_seccomp(isolation.seccomp_filter(os.uname().machine))
for action in (os.fork, socket.socket, lambda: os.kill(1, 0), lambda: os.execv("/bin/true", ["true"])):
    try:
        action()
    except PermissionError:
        print("refused")
thread = threading.Thread(target=lambda: print("thread"))
thread.start()
thread.join()
resource.getrlimit(resource.RLIMIT_AS)
try:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (PermissionError, ValueError):
    print("refused")
os.isatty(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert done.stdout.split() == ["refused"] * 4 + ["thread", "refused"], done.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_seccomp_filter_decides_by_the_list(machine):
    """A small interpreter of the kernel's instructions runs the search tree and compares it with
    the list."""
    column, audit = isolation._MACHINES[machine]
    program = list(struct.iter_unpack("=HBBI", isolation.seccomp_filter(machine)))
    words = isolation._ALLOWED.split()
    allowed = {int(n) for text in words[1::2] if (n := text.split("/")[column]) != "-"}
    special = {int(text.split("/")[column]) for text in isolation._LOOKED_AT.split()[1::2]}
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026
    for number in set(range(600)) - special:
        expected = allow if number in allowed else refuse if number <= isolation._LAST else unknown
        assert _bpf(program, number, audit) == expected, number
        assert (
            _bpf(program, number, audit ^ 1) == _bpf(program, number | 0x40000000, audit) == refuse
        )
    clone, fcntl, prlimit = ((56, 72, 302), (220, 25, 261))[column]
    threads = 0x3D0F00  # the flags of pthread_create
    assert _bpf(program, clone, audit, threads) == allow
    assert {_bpf(program, clone, audit, flags) for flags in (17, threads | 0x10000000, 0x4100)} == {
        refuse
    }
    assert (
        _bpf(program, fcntl, audit, 5, 1) == allow and _bpf(program, fcntl, audit, 5, 8) == refuse
    )
    assert _bpf(program, prlimit, audit, 0, 7, 0) == allow
    assert (
        _bpf(program, prlimit, audit, 0, 7, 1 << 32)
        == _bpf(program, prlimit, audit, 0, 7, 5)
        == refuse
    )


def _bpf(program, number, machine, *arguments):
    data = struct.pack("=IIQ6Q", number, machine, 0, *(arguments + (0,) * 6)[:6])
    at = value = 0
    while True:
        code, yes, no, constant = program[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("=I", data, constant)[0]
        elif code == 0x06:
            return constant
        elif code == 0x05:
            at += constant
        else:
            holds = {
                0x15: value == constant,
                0x35: value >= constant,
                0x45: bool(value & constant),
            }[code]
            at += yes if holds else no


def test_protections_are_told(sandbox):
    assert not set(sandbox.isolation) & set(sandbox.missing)
    assert set(sandbox.isolation) | set(sandbox.missing) == {*REQUIRED, "landlock"}
    assert {"limits", "hook"} <= set(sandbox.isolation)


@pytest.mark.parametrize("name", ["namespaces", "seccomp", "privileges", "hook"])
def test_what_is_left_out_is_found_missing(name, monkeypatch, capsys):
    """The probe finds it; strict refuses and says what to do; best-effort warns once and runs."""
    if sys.platform != "linux" and name != "hook":
        pytest.skip("Linux only")
    monkeypatch.setattr(data.sandbox.sandbox, "_warned", False)
    expected = {"namespaces": {"processes", "network", "ipc", "files"}}.get(name, {name})
    with pytest.raises(
        InputError, match="sandbox strict: the sandbox lacks protections .*left out"
    ) as error:
        Sandbox(workers=1, mode="strict", _without=(name,))
    assert all(f"{one}: " in str(error.value) for one in expected) and "\n" not in str(error.value)
    assert capsys.readouterr().err == ""
    with Sandbox(workers=1, _without=(name,)) as sandbox:
        assert expected <= set(sandbox.missing) and not expected & set(sandbox.isolation)
        assert sandbox.run("print(1)") == Result("ok", "1\n", "")
        sandbox._check_protections(
            "best-effort"
        )  # as if another sandbox starts: it warns only once
    assert capsys.readouterr().err.count("warning: the sandbox lacks protections") == 1


def test_mode_is_checked(monkeypatch):
    with pytest.raises(InputError, match="--sandbox maximal: unknown; use strict or best-effort"):
        Sandbox(mode="maximal")
    monkeypatch.setenv("SANDBOX", "maximal")
    with pytest.raises(InputError, match="SANDBOX in the environment: maximal: unknown"):
        Sandbox()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_environment_makes_every_sandbox_strict(monkeypatch):
    monkeypatch.setenv("SANDBOX", "strict")
    with pytest.raises(
        InputError, match="sandbox strict: the sandbox lacks protections .*left out"
    ):
        Sandbox(workers=1, _without=("seccomp",))


@linux
def test_a_trainer_that_is_not_root():
    """As nobody, with any Python that this user can read: the same protections and the same
    results."""
    python = next(filter(os.path.exists, ("/usr/bin/python3", sys.executable)))
    packages = os.path.dirname(os.path.dirname(importlib.util.find_spec("sympy").origin))
    code = f"""import os, sys
sys.path[:0] = [{str(ROOT)!r}]
sys.path.append({packages!r})
from data.sandbox.sandbox import Sandbox
with Sandbox(workers=1) as sandbox:
    print(sorted(sandbox.isolation), sandbox.run("import sympy\\nprint(sympy.sqrt(8))"), os.getuid())
"""
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    check = f"import sys\nassert sys.version_info >= (3, 11)\nopen({str(ROOT / 'data' / 'sandbox' / 'sandbox.py')!r})\n"
    check += f"open({packages + '/sympy/__init__.py'!r})"
    if subprocess.run([python, "-c", check], capture_output=True, cwd="/", **user).returncode:
        pytest.skip(f"nobody cannot read {python}, {ROOT} or {packages}")
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd="/", timeout=60, **user
    )
    assert "Result(status='ok', stdout='2*sqrt(2)\\n', error='')" in done.stdout, done.stderr
    with Sandbox(workers=1) as sandbox:
        assert str(sorted(sandbox.isolation)) in done.stdout, done.stderr


def test_programs_of_the_coding_benchmarks_run(sandbox):
    code = """
from typing import List, Tuple, Optional
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta
import bisect, cmath, copy, functools, hashlib, heapq, itertools, json, math, operator, random, re, statistics, string
from fractions import Fraction
from decimal import Decimal
import threading, time, timeit, unicodedata, zlib, struct, enum, dataclasses, textwrap, array, calendar, queue, base64

@dataclasses.dataclass
class Item:
    weight: int

def check(candidate):
    assert candidate([3, 1, 2]) == [1, 2, 3]
    assert hashlib.md5(b"Hello world").hexdigest() == "3e25960a79dbc69b674cd4ec67a72c62"
    assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442") and heapq.nsmallest(1, [2, 1]) == [1]
    assert re.sub("[aeiou]", "", "education") == "dctn" and Counter("aab").most_common(1) == [("a", 2)]
    assert date(2024, 3, 1) - date(2024, 2, 28) == timedelta(2) and Item(3).weight == 3
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start(); thread.join()

check(sorted)
print("passed")
"""
    assert sandbox.run(code) == Result("ok", "passed\n", "")
    assert sandbox.run(code.replace("[1, 2, 3]", "[1, 3, 2]")).error.startswith("AssertionError")


def test_long_programs(sandbox):
    assert sandbox.run("x = '" + "a" * 900_000 + "'\nprint(len(x))") == Result("ok", "900000\n", "")
    assert (
        sandbox.run("#" * 1_000_001).error
        == "the program has 1000001 characters; 1000000 is the most"
    )


def test_scratch_is_removed_on_close():
    with Sandbox(workers=1) as sandbox:
        scratch = sandbox._servers[0].scratch
        assert os.path.dirname(scratch) == tempfile.gettempdir()
    assert not os.path.exists(scratch)
