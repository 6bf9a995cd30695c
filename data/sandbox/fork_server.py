"""The server of the sandbox (sandbox.py): a warm interpreter that forks a confined child for each
program.

guard: the trainer starts it; it makes the namespaces and waits
+-- server: process 1 of a process namespace; it loads sympy and talks to the trainer over two pipes
    +-- program: it is confined further, runs a program, and ends
"""

import builtins
import gc
import importlib
import json
import math
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback

from data.sandbox import isolation

LINUX = sys.platform == "linux"
SCRATCH = "/scratch"  # in the new root
SCRATCH_BYTES, SCRATCH_FILES = 64 * 2**20, 1024
FILE_BYTES, DESCRIPTORS, THREADS = 16 * 2**20, 64, 64
WARM_UP = """
from sympy import *
x, y = symbols("x y")
str([solve(simplify(x**2 - sqrt(2) * x + Rational(1, 3)), x), solve(x**2 - 9 * x + 20, x)])
str([solve([x + y - 3, x - y], [x, y]), factor(x**3 - 1), expand((x + 1) ** 2)])
str([Matrix([[1, 2], [3, 4]]).det()])
str([integrate(x**2, x), diff(sin(x), x), N(pi)])
"""
MODULES = (
    "bisect",
    "cmath",
    "collections",
    "copy",
    "datetime",
    "decimal",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "typing",
)


# ---- The protocol --------------------------------------------------------------------------------


def send(descriptor: int, message: dict) -> None:
    """Send a JSON message, with the length in front."""
    data = json.dumps(message).encode()
    data = memoryview(struct.pack("<I", len(data)) + data)
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int, deadline: float | None = None) -> dict:
    """Receive a message. Raises EOFError if the other side is gone, TimeoutError after the
    deadline."""
    length = struct.unpack("<I", _read_exactly(descriptor, 4, deadline))[0]
    return json.loads(_read_exactly(descriptor, length, deadline))


def _read_exactly(descriptor: int, count: int, deadline: float | None) -> bytes:
    data = b""
    while len(data) < count:
        if deadline is not None:
            poll = select.poll()  # unlike select it takes descriptors above 1024
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
        chunk = os.read(descriptor, count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


# ---- Guard and server ----------------------------------------------------------------------------


def main() -> None:
    """The guard. It ends when the server ends, and when the trainer is gone for whatever reason.
    The server ends with the guard."""
    config = json.loads(sys.argv[1])
    trainer, reason = os.getppid(), ""
    os.umask(0o022)
    before = isolation.namespaces() if LINUX else {}
    listener = socket.create_server(("127.0.0.1", 0))  # the probe tests whether programs reach it
    if not LINUX:
        reason = "needs Linux"
    elif "namespaces" in config["without"]:
        reason = "left out"
    else:
        try:
            isolation.enter_namespaces()
        except OSError as error:
            reason = f"no namespaces: {error}"
    missing = dict.fromkeys(("processes", "network", "ipc", "files"), reason) if reason else {}
    alive, held = os.pipe()  # the pipe ends when the server has died
    server = os.fork()
    if server == 0:
        os.close(alive)
        try:
            _serve(config, missing, before, listener)
        except BaseException as problem:
            os.write(2, f"{type(problem).__name__}: {problem}\n".encode())
        finally:
            os._exit(1)
    os.close(held)
    listener.close()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # the server has the pipes
    poll = select.poll()
    poll.register(alive)
    while not poll.poll(1000) and os.getppid() == trainer:
        pass
    _remove(config["scratch"])


def _serve(config: dict, missing: dict[str, str], before: dict[str, int], listener) -> None:
    if LINUX:  # PR_SET_PDEATHSIG: die with the guard
        isolation.call("prctl", 1, int(signal.SIGKILL), 0, 0, 0)
    # Process 1 receives no signal from inside that it does not handle.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The protocol leaves descriptors 0 and 1, which belong to programs.
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.environ.clear()
    sys.path += config["packages"]
    for name in MODULES:
        importlib.import_module(name)
    exec(WARM_UP, {})  # first calls import much: do it here, once
    builtins.exit = builtins.quit = sys.exit  # -S leaves them out
    after = isolation.namespaces() if LINUX else {}  # while there is still a /proc
    separate = {name for name in after if after[name] != before.get(name)}
    memory = _address_space() + config["memory_mb"] * 2**20
    plan = {**_prepare(config, missing), "memory": memory}
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, the pages that children share
    guard = os.getppid()
    faults = _probe(config, plan, separate, listener.getsockname())
    listener.close()
    program = "import colorsys\nopen('file', 'w').close()\nprint(1)"
    first = _run(program, config, plan, requests, guard)
    if first and first["status"] != "ok":
        raise RuntimeError(f"the first program did not run: {first['error']}")
    lacking = {name: missing.get(name) or fault for name, fault in faults.items() if fault}
    active = [name for name, fault in faults.items() if not fault]
    send(replies, {"isolation": active, "missing": lacking})
    while True:
        try:
            code = receive(requests)["code"]
        except EOFError:
            return
        reply = _run(code, config, plan, requests, guard)
        if reply is None:
            return
        send(replies, reply)


def _prepare(config: dict, missing: dict[str, str]) -> dict:
    """Confine the server by the steps that are the same for all children. Returns the plan of the
    steps that each child still has to do.

    `missing` receives what the system refuses. A step that cannot be undone is first tried in a
    child.
    """
    plan = {
        "scratch": os.path.realpath(config["scratch"]),
        "drop": LINUX,
        "user": None,
        "rules": None,
        "filter": None,
    }
    python = (sys.prefix, sys.base_prefix, *config["packages"])
    # for the audit hook
    plan["readable"] = tuple(os.path.realpath(folder) + os.sep for folder in python)
    if not LINUX:
        missing.update(dict.fromkeys(("privileges", "landlock", "seccomp"), "needs Linux"))
        return plan
    places = isolation.readable_places(config["packages"])
    left_out = [name for name in config["without"] if name != "namespaces"]
    missing.update(dict.fromkeys(left_out, "left out"))
    if "files" not in missing:
        root = (config["scratch"], places, SCRATCH, SCRATCH_BYTES, SCRATCH_FILES)
        missing["files"] = isolation.attempt(lambda: _enter_root_and_import(root))
        if missing["files"] is None:
            isolation.enter_root(*root)
            plan["scratch"] = SCRATCH
    plan["drop"] = "privileges" not in missing
    if os.geteuid() == 0 and plan["drop"]:
        missing["privileges"] = isolation.attempt(lambda: _become_nobody(places))
        plan["user"] = isolation.NOBODY if missing["privileges"] is None else None
    if "landlock" not in missing:
        try:
            plan["rules"] = isolation.landlock_rules(places, plan["scratch"])
        except OSError as error:
            missing["landlock"] = str(error)
    if "seccomp" not in missing:
        try:
            plan["filter"] = isolation.seccomp_filter(os.uname().machine)
        except OSError as error:
            missing["seccomp"] = str(error)
    return plan


def _enter_root_and_import(root: tuple) -> None:
    isolation.enter_root(*root)
    _read_python()


def _become_nobody(places: list[str]) -> None:
    isolation.drop_privileges(isolation.NOBODY)
    _read_python()


def _read_python() -> None:
    """Read the standard library and sympy. Raises OSError or ImportError if that is not
    possible."""
    for name in ("sympy", "os"):
        open(sys.modules[name].__file__).close()
    import colorsys  # noqa: F401  (nothing has loaded this module yet)


def _run(code: str, config: dict, plan: dict, requests: int, guard: int) -> dict | None:
    """Run a program in a child. Returns the reply for the trainer, or None if the trainer is
    gone."""
    folder = os.path.join(plan["scratch"], "program")
    os.mkdir(folder)
    if plan["user"] is not None:
        os.chown(folder, plan["user"], plan["user"])
    out_read, out_write = os.pipe()
    error_read, error_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become_program(code, config, plan, folder, out_write, error_write)
        except BaseException as problem:
            os.write(error_write, f"sandbox: {problem!r}".encode())
        finally:
            os._exit(70)
    os.close(out_write)
    os.close(error_write)
    reply = _watch(child, out_read, error_read, requests, config, guard)
    os.close(out_read)
    os.close(error_read)
    _end_processes()
    _remove(folder)
    return reply


def _end_processes() -> None:
    """End the processes that a program left behind. In a process namespace these are all processes
    except the server."""
    if os.getpid() == 1:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        try:
            while True:
                os.wait()
        except ChildProcessError:
            pass


def _remove(folder: str) -> None:
    """Remove a folder and everything in it, without recursion and long paths: inner folders are
    moved up and then emptied."""
    try:
        os.rmdir(folder)
        return
    except FileNotFoundError:
        return
    except OSError:
        pass
    os.chmod(folder, 0o700)
    count = 0
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isdir(path):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            for inner in os.listdir(path):
                while os.path.lexists(free := os.path.join(folder, f".{count}")):
                    count += 1
                os.rename(os.path.join(path, inner), free)
            os.rmdir(path)
    os.rmdir(folder)


def _watch(
    child: int, out: int, error: int, requests: int, config: dict, guard: int
) -> dict | None:
    """Collect the output of a program until it ends or breaks a limit. Returns the reply for the
    trainer, or None if the trainer is gone (then the child is killed)."""
    deadline = time.monotonic() + config["wall_seconds"]
    texts = {out: b"", error: b""}
    ended = status = usage = None
    poll = select.poll()
    handle = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None  # readable after its end
    for descriptor in (out, error, requests) + ((handle,) if handle is not None else ()):
        poll.register(descriptor, select.POLLIN)
    open_pipes = {out, error}
    while ended is None and status is None:
        for descriptor, _ in poll.poll(1000 if open_pipes or handle is not None else 1):
            if descriptor == requests:  # nobody writes while a program runs: the trainer is gone
                status = "gone"
            if descriptor not in texts:
                continue
            chunk = os.read(descriptor, 65536)
            texts[descriptor] += chunk
            if not chunk:
                poll.unregister(descriptor)
                open_pipes.discard(descriptor)
            if len(texts[out]) > config["output_bytes"]:
                status = "output"
            elif len(texts[error]) > 10_000:
                status = "error"
        pid, code, usage = os.wait4(child, os.WNOHANG)
        if pid:
            ended = code
        elif time.monotonic() > deadline:
            status = "timeout"
        elif os.getppid() != guard:
            status = "gone"
    if ended is None:
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        _, ended, usage = os.wait4(child, 0)
    if handle is not None:
        os.close(handle)
    if status == "gone":
        return None
    for descriptor in open_pipes:  # read what was still in the pipes at the end
        os.set_blocking(descriptor, False)
        try:
            while status is None and (chunk := os.read(descriptor, 65536)):
                texts[descriptor] += chunk
                status = "output" if len(texts[out]) > config["output_bytes"] else None
        except BlockingIOError:
            pass
    seconds = usage.ru_utime + usage.ru_stime
    status, line = _judge(status, ended, seconds, texts[error], config)
    stdout = texts[out][: config["output_bytes"]].decode(errors="replace")
    return {"status": status, "stdout": stdout, "error": line}


def _judge(
    status: str | None, ended: int, seconds: float, report: bytes, config: dict
) -> tuple[str, str]:
    """(status, error) of a Result.

    status: the limit that the program broke while it was watched, or None. ended: the status of
    os.wait4. seconds: CPU time. report: what the child wrote about its end.
    """
    line, finished, _ = report[:10_000].decode(errors="replace").partition("\0")
    line = line.strip()
    number = os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0
    used_up = seconds >= config["cpu_seconds"]
    killed = number == signal.SIGKILL and status is None and used_up
    if status == "timeout" or number == signal.SIGXCPU or killed:
        status = "timeout"
        line = f"more than {config['cpu_seconds']} CPU seconds or {config['wall_seconds']} seconds"
    elif status == "output":
        line = f"printed more than {config['output_bytes']} bytes"
    elif line.startswith("MemoryError"):
        status = "memory"
    elif number:
        status, line = "error", f"killed by {signal.Signals(number).name}"
    elif line or ended:
        status, line = "error", line or f"exit code {os.waitstatus_to_exitcode(ended)}"
    elif not finished:
        status, line = "error", "it stopped before its end (os._exit)"
    return status or "ok", line


def _address_space() -> int:
    """The bytes of the loaded interpreter, which do not count as memory of a program. 0 if
    unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


# ---- The program ---------------------------------------------------------------------------------


def _become_program(code: str, config: dict, plan: dict, folder: str, out: int, error: int) -> None:
    """In the child: set every limit, run the program, and report an uncaught exception on `error`.
    This function does not return."""
    os.setsid()
    os.dup2(out, 1)
    os.dup2(error, 3, inheritable=False)  # 0 and 2 are /dev/null
    os.dup2(0, 2)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    sys.stdin = open(0, closefd=False)
    sys.argv = sys.orig_argv = ["program.py"]
    random.seed(0)
    os.chdir(folder)
    for step in _confinement(config, plan, folder).values():
        step()
    os.closerange(4, 256)  # more than the server ever opens
    status = 1
    try:
        names = {"__name__": "__main__", "__builtins__": __builtins__}
        exec(compile(code, "program.py", "exec"), names)
        sys.stdout.flush()
        status = 0
    except SystemExit as stop:
        status = 0 if stop.code in (None, 0) else 1
        _report(f"SystemExit: {stop.code}" if status else "")
    except MemoryError:
        code = None
        _report("MemoryError")
    except BaseException as problem:
        try:
            _report(traceback.format_exception_only(problem)[-1].strip().splitlines()[-1])
        except BaseException:
            _report(type(problem).__name__)
    try:
        sys.stdout.flush()
        _report("\0")  # the program came to its end
    finally:
        os._exit(status)


def _confinement(config: dict, plan: dict, folder: str) -> dict:
    """The steps with which a child confines itself, in order."""
    steps = {"limits": lambda: _limit(config, plan)}
    if plan["drop"]:
        steps["privileges"] = lambda: isolation.drop_privileges(plan["user"])
    if plan["rules"] is not None:
        steps["landlock"] = lambda: isolation.landlock(plan["rules"])
    if plan["filter"]:
        steps["seccomp"] = lambda: isolation.apply_seccomp(plan["filter"])
    if "hook" not in config["without"]:
        steps["hook"] = lambda: sys.addaudithook(isolation.audit_hook(folder, plan["readable"]))
    return steps


def _limits(config: dict, plan: dict) -> dict[int, tuple[int, int]]:
    """resource -> (soft, hard) limit, for the resources that this system knows."""
    cpu = math.ceil(config["cpu_seconds"])
    limits = {
        "CPU": (cpu, cpu + 1),  # SIGXCPU, then SIGKILL for programs that catch it
        "AS": (plan["memory"], plan["memory"]),
        "FSIZE": (FILE_BYTES, FILE_BYTES),
        "CORE": (0, 0),
        "NOFILE": (DESCRIPTORS, DESCRIPTORS),
        "NPROC": (THREADS, THREADS),
        "MEMLOCK": (0, 0),
        "MSGQUEUE": (0, 0),
    }
    known = {}
    for name, pair in limits.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            known[number] = pair
    return known


def _limit(config: dict, plan: dict) -> None:
    for number, pair in _limits(config, plan).items():
        try:
            resource.setrlimit(number, pair)
        except (ValueError, OSError):
            pass  # not supported here; the probe at the start reports it


def _report(line: str) -> None:
    os.write(3, line[:1000].encode(errors="replace"))


# ---- The probe -----------------------------------------------------------------------------------


def _probe(
    config: dict, plan: dict, separate: set[str], listener: tuple[str, int]
) -> dict[str, str | None]:
    """Try what each protection should stop, in a child that is confined like a program.

    separate: the namespaces that are not the trainer's. Returns protection -> None if it held, else
    what was possible.
    """
    read, write = os.pipe()

    def attack():
        faults = dict.fromkeys(
            ("limits", "privileges", "landlock", "seccomp", "hook"), "not applied"
        )
        steps = _confinement(config, plan, plan["scratch"])
        checks = {
            "limits": lambda: _limits_differ(config, plan),
            "privileges": _privileges,
            "landlock": _reads_root,
            "seccomp": _starts_processes,
            "hook": _audits,
        }
        alone = "pid" in separate and os.getppid() == 1
        faults["processes"] = None if alone else "other processes are visible"
        faults["network"] = "the trainer's network is visible"
        if "net" in separate:
            faults["network"] = _connects(listener)
        alone = {"ipc", "uts"} <= separate
        faults["ipc"] = None if alone else "shared memory and the host's name are visible"
        faults["files"] = _sees_files(config["scratch"])
        for name, step in steps.items():
            step()
            faults[name] = checks[name]()
        os.write(write, json.dumps(faults).encode())

    child = isolation.fork(attack)
    os.close(write)
    with open(read) as file:
        text = file.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the probe of the protections failed; the reason is above")
    return json.loads(text)


def _limits_differ(config: dict, plan: dict) -> str | None:
    limits = _limits(config, plan)
    differ = [number for number, pair in limits.items() if resource.getrlimit(number) != pair]
    return f"limits without effect: {differ}" if differ else None


def _privileges() -> str | None:
    return "programs are root or have capabilities" if isolation.has_privileges() else None


def _connects(listener: tuple[str, int]) -> str | None:
    try:
        socket.create_connection(listener, timeout=1).close()
        return "programs reach the trainer's ports"
    except OSError:
        return None


def _sees_files(outside: str) -> str | None:
    if os.path.exists(outside):
        return "programs see the trainer's files"
    try:
        os.mkdir("/probe")
        return "programs write outside their scratch folder"
    except OSError:
        return None


def _reads_root() -> str | None:
    try:
        os.listdir("/")
        return "the ruleset does not hold"
    except PermissionError:
        return None


def _starts_processes() -> str | None:
    for action in (os.fork, socket.socket, lambda: os.kill(os.getpid(), 0)):
        try:
            if action() == 0:
                os._exit(0)
            return "the filter does not hold"
        except PermissionError:
            pass
    return None


def _audits() -> str | None:
    try:
        sys.audit("socket.connect")
        return "the hook is not called"
    except PermissionError:
        return None
