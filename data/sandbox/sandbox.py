"""Runs the Python programs of a model, which may be hostile: limited, isolated, in a few
milliseconds each.

Each worker is a server of fork_server.py: a fresh interpreter that starts once, loads sympy, and
forks a child for each program. The trainer talks to it over two pipes and never forks itself. So
the trainer may use threads, CUDA and torchrun.

These protections hold a program back. A probe verifies each of them at the start. On systems other
than Linux there are only "limits" and "hook".

- "limits": CPU seconds, address space, files, threads, no core dumps, as rlimits. The CPU limit
  decides "timeout", so the verdict does not depend on the load. Programs that sleep end after a
  wall clock of 3 times the CPU limit plus 2 seconds.
- "files": a mount namespace. Its root has only Python, the packages and the shared libraries,
  read-only, and a scratch folder in memory (64 MiB, 1024 files) that is new for each program.
  There is no home folder, no data, no /proc and no shell.
- "processes": a process namespace. No other process is visible, and processes that a program leaves
  behind end with it.
- "network", "ipc": no network device, no shared memory, not the host name of the trainer.
- "privileges": no capabilities, no way to gain any, and the user "nobody" if the trainer is root.
- "seccomp": only the system calls that Python needs to compute.
- "landlock": a second line of defense behind "files".
- "hook": an audit hook that turns attempts into plain errors. Python code can bypass it. Nothing
  depends on it where the other protections are active.

A program has no environment, an empty standard input, and no inherited descriptors.
`Sandbox.isolation` names the active protections, and `Sandbox.missing` says why others are
missing. Against an attacker who knows a flaw of the kernel, use a virtual machine as well.

Every program starts from the same state: hash seed 0, `random` seeded with 0. When a program
exits, everything that it opened is closed. When the trainer is gone, for whatever reason, a server
kills its program and ends.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from data.io import InputError
from data.sandbox.fork_server import receive, send

# What mode "strict" requires, and what to do if it is missing
REQUIRED = {
    "limits": "raise the trainer's own limits (ulimit -H)",
    "hook": "run Python 3.11 or later",
    "privileges": "make Python and its packages readable for every user, or do not run as root",
    "seccomp": "use Linux on x86-64 or arm64 with CONFIG_SECCOMP_FILTER",
    "processes": "allow user namespaces",
    "network": "allow user namespaces",
    "ipc": "allow user namespaces",
    "files": "allow user namespaces; Linux 5.12 or later",
}
NAMESPACES = (
    "User namespaces: sysctl user.max_user_namespaces above 0; on Ubuntu also "
    "kernel.apparmor_restrict_unprivileged_userns=0; "
    "in a container --security-opt seccomp=unconfined (Docker, Podman)"
)
LONGEST = 1_000_000  # characters of a program


class Result(NamedTuple):
    """The result of a program.

    status: "ok", "error" (uncaught exception, exit code, killed), "timeout", "memory", or "output"
    (it printed too much).
    """

    status: str
    stdout: str  # what it printed, at most output_bytes
    error: str  # the last line of the traceback, or the reason why the program ended


class Sandbox:
    """Runs programs in `workers` fork servers. It is a context manager.

    cpu_seconds, memory_mb, output_bytes: limits of each program. The memory of the loaded
    interpreter does not count. mode: with "strict", a protection that is missing here raises
    InputError. With "best-effort", a warning names it once. SANDBOX=strict in the environment makes
    every sandbox strict. _without: protections that tests leave
    out. Raises RuntimeError if a server cannot start.
    """

    def __init__(
        self,
        workers: int = 2,
        cpu_seconds: float = 5,
        memory_mb: int = 512,
        output_bytes: int = 10_000,
        mode: str = "best-effort",
        _without: tuple[str, ...] = (),
    ):
        modes = {"--sandbox": mode, "SANDBOX in the environment:": os.environ.get("SANDBOX", mode)}
        for where, value in modes.items():
            if value not in ("strict", "best-effort"):
                raise InputError(f"{where} {value}: unknown; use strict or best-effort")
        mode = "strict" if "strict" in modes.values() else "best-effort"
        limits = {
            "cpu_seconds": cpu_seconds,
            "memory_mb": memory_mb,
            "output_bytes": output_bytes,
            "without": _without,
        }
        self._threads = ThreadPoolExecutor(max(1, workers))
        self._servers = [_Server(limits) for _ in range(max(1, workers))]  # they start together
        try:
            for server in self._servers:
                server.wait_ready()
            self.isolation: tuple[str, ...] = self._servers[0].isolation
            self.missing: dict[str, str] = self._servers[0].missing
            self._check_protections(mode)
        except BaseException:
            self.close()
            raise
        self._free = list(self._servers)
        self._available = threading.Semaphore(len(self._servers))

    def _check_protections(self, mode: str) -> None:
        global _warned
        lacking = [name for name in REQUIRED if name in self.missing]
        reasons = "; ".join(f"{name}: {self.missing[name]}, {REQUIRED[name]}" for name in lacking)
        text = f"the sandbox lacks protections ({reasons})."
        if any("user namespaces" in REQUIRED[name] for name in lacking):
            text += f" {NAMESPACES}."
        if lacking and mode == "strict":
            raise InputError(f"sandbox strict: {text} best-effort runs without them")
        if lacking and not _warned:
            print(
                f"warning: {text} Run only programs that you trust, or set SANDBOX=strict",
                file=sys.stderr,
            )
            _warned = True

    def run(self, code: str) -> Result:
        """Run a program. Several threads may call this."""
        if len(code) > LONGEST:
            return Result(
                "error", "", f"the program has {len(code)} characters; {LONGEST} is the most"
            )
        with self._available:
            server = self._free.pop()
            try:
                return server.run(code)
            finally:
                self._free.append(server)

    def start(self, code: str) -> "Future[Result]":
        """Run a program as soon as a worker is free, while the caller goes on."""
        return self._threads.submit(self.run, code)

    def run_many(self, codes: list[str]) -> list[Result]:
        """Run the programs on all workers. Equal programs run once. The results are in the order of
        `codes`."""
        started = {code: self.start(code) for code in dict.fromkeys(codes)}
        return [started[code].result() for code in codes]

    def close(self) -> None:
        """Drop programs that have not started, and wait for the others, at most their time
        limit."""
        self._threads.shutdown(cancel_futures=True)
        for server in self._servers:
            server.stop()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()


_warned = False  # best-effort warns once in a process


class _Server:
    """A fork server, as the trainer sees it. It is started again when it has died."""

    def __init__(self, limits: dict):
        self.limits = limits
        self.wall_seconds = 3 * limits["cpu_seconds"] + 2
        self.start()

    def start(self) -> None:
        self.scratch = tempfile.mkdtemp(prefix="sandbox-")
        spec = importlib.util.find_spec("sympy")
        folders = spec.submodule_search_locations if spec else []
        packages = [os.path.dirname(folder) for folder in folders]
        config = {
            **self.limits,
            "wall_seconds": self.wall_seconds,
            "packages": packages,
            "scratch": self.scratch,
        }
        self.log = tempfile.TemporaryFile()
        root = str(Path(__file__).resolve().parents[2])
        code = (
            f"import sys; sys.path += [{root!r}]; from data.sandbox import fork_server; "
            "sys.path.pop(); fork_server.main()"
        )
        # -I would ignore the hash seed. -s -S -P and an empty environment isolate as well.
        command = [sys.executable, "-s", "-S", "-P", "-B", "-c", code, json.dumps(config)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                bufsize=0,
                cwd="/",
                env={"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"},
                start_new_session=True,
            )
        except OSError as error:
            shutil.rmtree(self.scratch, ignore_errors=True)
            raise RuntimeError(f"the sandbox could not start {sys.executable}: {error}") from None

    def wait_ready(self) -> None:
        try:
            ready = receive(self.process.stdout.fileno(), time.monotonic() + 120)
        except (EOFError, OSError, TimeoutError, ValueError) as error:
            self.stop()
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else type(error).__name__
            raise RuntimeError(
                f"the sandbox's fork server did not start ({sys.executable}): {reason}"
            ) from None
        self.isolation, self.missing = tuple(ready["isolation"]), ready["missing"]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # the server and the program die with it
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, code: str) -> Result:
        for _ in range(2):
            try:
                send(self.process.stdin.fileno(), {"code": code})
                deadline = time.monotonic() + 2 * self.wall_seconds + 10
                return Result(**receive(self.process.stdout.fileno(), deadline))
            except TimeoutError:
                failure = Result("timeout", "", "the sandbox's server did not answer")
            except (EOFError, OSError, ValueError, TypeError):
                failure = Result("error", "", "the sandbox's server died")
            self.stop()
            self.start()
            before = set(self.isolation)
            self.wait_ready()
            if lost := before - set(self.isolation):
                raise RuntimeError(f"the sandbox started again without {', '.join(lost)}")
            if failure.status == "timeout":
                break
        return failure
