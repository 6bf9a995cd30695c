"""Running a model's Python programs: limited, isolated, and in a few milliseconds each.

Each worker is a fork server: a fresh interpreter, started once with sympy loaded, that forks a child per program. The
trainer talks to it over two pipes, so the trainer may have threads, CUDA or torchrun around it: it never forks itself.

What holds a program back (Linux; on other systems only the lines marked *):
- CPU seconds, address space, file size, core dumps, processes: rlimits *. The CPU limit decides "timeout", so the
  verdict does not depend on load; a wall clock of 3 x the CPU limit + 2 s is the backstop for programs that sleep.
- No environment, standard input empty, no inherited descriptors *; a fresh working folder, deleted afterwards *.
- An audit hook * refuses sockets, processes, signals, ctypes, writing outside the working folder, and reading outside
  it and Python's own folders (so programs cannot read the test set). Python code determined to get round an audit hook
  can; hence the next two.
- A seccomp filter (x86-64, arm64) refuses sockets, new processes (threads are allowed), exec, signals, ptrace and
  raising limits, whoever the user is. RLIMIT_NPROC does not bind root; this does.
- User, network and IPC namespaces where the system allows them: no network device, and root is not root outside.
`Sandbox.isolation` tells which of the last two are in force. This stops a policy that stumbles into harm or learns to
cheat; against a skilled attacker use a virtual machine as well.

Programs start from the same state: hash seed 0, `random` seeded with 0. A program's exit closes everything it had;
a server exits, killing its program, when its trainer is gone (end of file on the pipe), however that died.
"""

import builtins
import ctypes
import gc
import importlib.util
import json
import math
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Result(NamedTuple):
    """status: "ok"; "error" (uncaught exception, non-zero exit, killed); "timeout"; "memory"; "output" (too much).
    stdout: what was printed, at most output_bytes. error: last line of the traceback, or what ended the program."""

    status: str
    stdout: str
    error: str


# ---------------------------------------------------------------------------------------------------- trainer's side


class Sandbox:
    """`workers` fork servers; a context manager. Memory is counted beyond what the loaded interpreter itself uses.

    Raises RuntimeError, saying why, when a server cannot start.
    """

    def __init__(self, workers: int = 2, cpu_seconds: float = 5, memory_mb: int = 512, output_bytes: int = 10_000):
        limits = {"cpu_seconds": cpu_seconds, "memory_mb": memory_mb, "output_bytes": output_bytes}
        self._servers = [_Server(limits) for _ in range(max(1, workers))]  # started together,
        try:
            for server in self._servers:
                server.wait_ready()  # then waited for
        except BaseException:
            self.close()
            raise
        self.isolation: tuple[str, ...] = tuple(self._servers[0].isolation)
        self._free = list(self._servers)
        self._available = threading.Semaphore(len(self._servers))

    def run(self, code: str) -> Result:
        """Run one program. May be called from several threads."""
        with self._available:
            server = self._free.pop()
            try:
                return server.run(code)
            finally:
                self._free.append(server)

    def run_many(self, codes: list[str]) -> list[Result]:
        """Results in the order of `codes`, spread over the workers; equal programs run once."""
        distinct = list(dict.fromkeys(codes))
        with ThreadPoolExecutor(len(self._servers)) as threads:
            results = dict(zip(distinct, threads.map(self.run, distinct), strict=True))
        return [results[code] for code in codes]

    def close(self) -> None:
        for server in self._servers:
            server.stop()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Server:
    """The trainer's handle of one fork server; restarts it when it has died."""

    def __init__(self, limits: dict):
        self.limits = limits
        self.wall_seconds = 3 * limits["cpu_seconds"] + 2
        self.start()

    def start(self) -> None:
        self.scratch = tempfile.mkdtemp(prefix="sandbox-")
        spec = importlib.util.find_spec("sympy")
        packages = [os.path.dirname(folder) for folder in spec.submodule_search_locations] if spec else []
        config = {**self.limits, "wall_seconds": self.wall_seconds, "packages": packages, "scratch": self.scratch}
        self.log = tempfile.TemporaryFile()
        # Not -I: that would ignore the hash seed. -s -S -P and an otherwise empty environment isolate as well.
        command = [sys.executable, "-s", "-S", "-P", "-B", os.path.abspath(__file__), "--server", json.dumps(config)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, bufsize=0, cwd="/",
                env={"PYTHONHASHSEED": "0"}, start_new_session=True)  # fmt: skip
        except OSError as error:
            shutil.rmtree(self.scratch, ignore_errors=True)
            raise RuntimeError(f"the sandbox could not start {sys.executable}: {error}") from None

    def wait_ready(self) -> None:
        try:
            self.isolation = _receive(self.process.stdout, time.monotonic() + 120)["isolation"]
        except (EOFError, OSError, TimeoutError, ValueError) as error:
            self.stop()
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else type(error).__name__
            raise RuntimeError(f"the sandbox's fork server did not start ({sys.executable}): {reason}") from None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # its program dies with it (PDEATHSIG, and the pipe's end)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, code: str) -> Result:
        for _ in range(2):
            try:
                _send(self.process.stdin.fileno(), {"code": code})
                return Result(**_receive(self.process.stdout, time.monotonic() + 2 * self.wall_seconds + 10))
            except TimeoutError:
                failure = Result("timeout", "", "the sandbox's server did not answer")
            except (EOFError, OSError, ValueError, TypeError):
                failure = Result("error", "", "the sandbox's server died")
            self.stop()
            self.start()
            self.wait_ready()
            if failure.status == "timeout":
                break
        return failure


def _send(descriptor: int, message: dict) -> None:
    data = json.dumps(message).encode()
    data = memoryview(struct.pack("<I", len(data)) + data)
    while data:
        data = data[os.write(descriptor, data) :]


def _receive(pipe, deadline: float | None = None) -> dict:
    """One length-prefixed JSON message. Raises EOFError when the other side is gone, TimeoutError past the deadline."""
    length = struct.unpack("<I", _read_exactly(pipe, 4, deadline))[0]
    return json.loads(_read_exactly(pipe, length, deadline))


def _read_exactly(pipe, count: int, deadline: float | None) -> bytes:
    data = b""
    while len(data) < count:
        if deadline is not None:
            poll = select.poll()  # unlike select, good for descriptors above 1024
            poll.register(pipe, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
        chunk = os.read(pipe.fileno(), count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


# ---------------------------------------------------------------------------------------------------- server's side


def _serve(config: dict) -> None:
    requests, replies = open(os.dup(0), "rb", 0), os.dup(1)  # the protocol moves off 0 and 1, which belong to programs
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.environ.clear()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    isolation = ["namespaces"] if libc and _enter_namespaces(libc) else []
    seccomp = _seccomp_program(os.uname().machine) if libc else None
    isolation += ["seccomp"] if seccomp and _fork_test(libc, seccomp) else []
    sys.path += config["packages"]
    import sympy

    x = sympy.Symbol("x")  # first calls import a lot: make them here, once
    sympy.solve(sympy.simplify(x**2 - sympy.sqrt(2) * x + sympy.Rational(1, 3)), x)
    import collections  # noqa: F401  (loaded once here rather than by every program)
    import decimal  # noqa: F401
    import fractions  # noqa: F401
    import itertools  # noqa: F401
    import random  # noqa: F401
    import statistics  # noqa: F401
    import traceback  # noqa: F401

    builtins.exit = builtins.quit = sys.exit  # what -S leaves out
    gc.collect()
    gc.freeze()  # the collector must not touch, and so copy, the pages shared with children
    trainer = os.getppid()
    _send(replies, {"isolation": isolation})
    while True:
        try:
            code = _receive(requests)["code"]
        except EOFError:
            return
        folder = tempfile.mkdtemp(dir=config["scratch"])
        out_read, out_write = os.pipe()
        error_read, error_write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _become_program(code, config, folder, out_write, error_write, libc, seccomp)
            except BaseException as problem:
                os.write(2, f"sandbox: {problem!r}\n".encode())
            finally:
                os._exit(70)
        os.close(out_write)
        os.close(error_write)
        reply = _watch(child, out_read, error_read, requests, config, trainer)
        os.close(out_read)
        os.close(error_read)
        shutil.rmtree(folder, ignore_errors=True)
        if reply is None:
            return
        _send(replies, reply)


def _watch(child: int, out: int, error: int, requests, config: dict, trainer: int) -> dict | None:
    """Collect a program's output until it ends or breaks a limit; None when the trainer has gone (child killed)."""
    deadline = time.monotonic() + config["wall_seconds"]
    texts = {out: b"", error: b""}
    ended = status = None
    poll = select.poll()
    for descriptor in (out, error, requests.fileno()):
        poll.register(descriptor, select.POLLIN)
    open_pipes = {out, error}
    while ended is None and status is None:
        for descriptor, _ in poll.poll(1000 if open_pipes else 1):
            if descriptor == requests.fileno():  # nobody writes here while a program runs: it is the end of file
                status = "gone"
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
        elif os.getppid() != trainer:
            status = "gone"
    if ended is None:
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        _, ended, usage = os.wait4(child, 0)
    if status == "gone":
        return None
    for descriptor in open_pipes:  # what was still in the pipes when it ended
        os.set_blocking(descriptor, False)
        try:
            while status is None and (chunk := os.read(descriptor, 65536)):
                texts[descriptor] += chunk
                status = "output" if len(texts[out]) > config["output_bytes"] else None
        except BlockingIOError:
            pass
    line = texts[error].decode(errors="replace").strip()
    number = os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0
    if status == "timeout" or number == signal.SIGXCPU or (
            number == signal.SIGKILL and status is None and usage.ru_utime + usage.ru_stime >= config["cpu_seconds"]):
        status, line = "timeout", f"more than {config['cpu_seconds']} CPU seconds or {config['wall_seconds']} seconds"
    elif status == "output":
        line = f"printed more than {config['output_bytes']} bytes"
    elif line.startswith("MemoryError"):
        status = "memory"
    elif number:
        status, line = "error", f"killed by {signal.Signals(number).name}"
    elif line or ended:
        status, line = "error", line or f"exit code {os.waitstatus_to_exitcode(ended)}"
    stdout = texts[out][:config["output_bytes"]].decode(errors="replace")
    return {"status": status or "ok", "stdout": stdout, "error": line}


def _become_program(code: str, config: dict, folder: str, out: int, error: int, libc, seccomp) -> None:
    """In the child: set every limit, run the program, report an uncaught exception on `error`. Does not return."""
    import random
    import resource
    import traceback

    os.setsid()
    if libc:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the server
    os.dup2(out, 1)
    os.dup2(error, 3, inheritable=False)  # 0 and 2 are /dev/null or the server's log
    os.dup2(0, 2)
    os.closerange(4, 256)
    os.chdir(folder)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    sys.stdin = open(0, closefd=False)
    sys.argv = ["program.py"]
    random.seed(0)
    cpu = math.ceil(config["cpu_seconds"])
    memory = _address_space() + config["memory_mb"] * 2**20
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # SIGXCPU, then SIGKILL for programs that catch it
    for name, limit in (("AS", memory), ("FSIZE", 16 * 2**20), ("CORE", 0), ("NOFILE", 64), ("NPROC", 64)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
        except (ValueError, OSError):
            pass  # not supported here; the other measures stand
    if seccomp:
        _apply_seccomp(libc, seccomp)
    sys.addaudithook(_audit_hook(folder, config["packages"]))
    status = 1
    try:
        exec(compile(code, "program.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
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
    finally:
        os._exit(status)


def _report(line: str) -> None:
    os.write(3, line[:1000].encode(errors="replace"))


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


_REFUSED = ("socket.", "subprocess.", "ctypes.", "pty.", "resource.setrlimit", "resource.prlimit", "os.kill",
            "signal.pthread_kill", "os.fork", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "sys.addaudithook")
_CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
             "os.chown", "os.utime", "os.chflags", "os.setxattr", "os.removexattr", "os.mkfifo", "os.mknod")


def _audit_hook(folder: str, packages: list[str]):
    own = (os.path.realpath(folder) + os.sep,)
    readable = tuple(os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix, *packages)) + own
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath, fsdecode, sep, devices = os.path.realpath, os.fsdecode, os.sep, (os.devnull, "/dev/urandom")

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if event == "open":
            allowed, paths = (own if arguments[2] & writing else readable), arguments[:1]
        elif event in ("os.listdir", "os.scandir"):
            allowed, paths = readable, arguments[:1]
        elif event in _CHANGING:
            if any(isinstance(a, int) and a >= 0 for a in arguments[-1:]) and event not in ("os.chmod", "os.truncate"):
                raise PermissionError(f"{event} with dir_fd is not allowed in the sandbox")
            allowed, paths = own, [a for a in arguments if isinstance(a, str | bytes)]
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes) and path not in devices:
                if not (realpath(fsdecode(path)) + sep).startswith(allowed):
                    raise PermissionError(f"{fsdecode(path)}: outside the sandbox")

    return hook


# ---------------------------------------------------------------------------------------------------- Linux


def _enter_namespaces(libc) -> bool:
    """Own user, network and IPC namespaces, with the same user and group numbers; False where not permitted."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x40000000 | 0x08000000):  # CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError:
            pass  # unmapped numbers show as 65534; access to files is the same
    return True


# audit number of the architecture, clone, and the refused system calls: fork, vfork, execve, execveat, kill, tkill,
# tgkill, socket, socketpair, ptrace, setrlimit, prlimit64, process_vm_readv, process_vm_writev, mount, umount2,
# unshare, setns, bpf, init_module, finit_module; last, numbered alike: io_uring_setup, pidfd_send_signal, pidfd_getfd
_SYSCALLS = {
    "x86_64": (0xC000003E, 56, (57, 58, 59, 322, 62, 200, 234, 41, 53, 101, 160, 302, 310, 311, 165, 166, 272, 308, 321,
                                175, 313, 425, 424, 438)),
    "aarch64": (0xC00000B7, 220, (221, 281, 129, 130, 131, 198, 199, 117, 164, 261, 270, 271, 40, 39, 97, 268, 280, 105,
                                  273, 425, 424, 438)),
}  # fmt: skip


def _seccomp_program(machine: str) -> bytes | None:
    """A classic BPF program over (system call number, architecture, arguments); None for an unknown machine."""
    if machine not in _SYSCALLS or sys.maxsize < 2**32:
        return None
    architecture, clone, refused = _SYSCALLS[machine]
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06  # opcodes
    allow, eperm, enosys = 0x7FFF0000, 0x00050001, 0x00050026
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, eperm), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), (give, 0, 0, eperm)]  # the x32 numbering would walk round the list
    for number in refused:
        code += [(equal, 0, 1, number), (give, 0, 0, eperm)]
    code += [(equal, 0, 1, 435), (give, 0, 0, enosys)]  # clone3 hides its flags in memory; libc then uses clone,
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (bits, 1, 0, 0x10000), (give, 0, 0, eperm)]  # for threads only
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code + [(give, 0, 0, allow)])


def _apply_seccomp(libc, program: bytes) -> bool:
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    number = ctypes.c_ulong
    return (libc.prctl(38, number(1), number(0), number(0), number(0)) == 0  # PR_SET_NO_NEW_PRIVS
            and libc.prctl(22, number(2), ctypes.c_char_p(header), number(0), number(0)) == 0)  # PR_SET_SECCOMP


def _fork_test(libc, program: bytes) -> bool:
    """Whether the kernel takes the filter, tried in a child since a filter cannot be taken off."""
    child = os.fork()
    if child == 0:
        os._exit(0 if _apply_seccomp(libc, program) else 1)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    if sys.argv[1:2] != ["--server"] or len(sys.argv) != 3:
        print("error: data/sandbox.py is used through data.sandbox.Sandbox", file=sys.stderr)
        sys.exit(2)
    settings = json.loads(sys.argv[2])
    try:
        _serve(settings)
    finally:
        shutil.rmtree(settings["scratch"], ignore_errors=True)
