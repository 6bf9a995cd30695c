"""Running a model's Python programs, which may be hostile: limited, isolated, and in a few milliseconds each.

Each worker is a server of data/sandbox/fork_server.py: a fresh interpreter, started once with sympy loaded, that forks a child
per program. The trainer talks to it over two pipes, so the trainer may have threads, CUDA or torchrun around it: it
never forks itself.

What holds a program back (Linux; elsewhere only "limits" and "hook"), each verified by a probe at the start:
- "limits": CPU seconds, address space, files, threads, no core dumps, as rlimits. The CPU limit decides "timeout", so
  the verdict does not depend on load; a wall clock of 3 x the CPU limit + 2 s is the backstop for programs that sleep.
- "files": a mount namespace whose root holds Python, its packages and the shared libraries, read-only, and a scratch
  folder in memory (64 MiB, 1024 files), fresh for each program. No home folder, no data, no /proc, no shell.
- "processes": a process namespace; nothing else is visible, and whatever a program leaves running ends with it.
- "network", "ipc": no network device, no shared memory, no host name of the trainer's.
- "privileges": no capabilities, no way to gain any; another user (nobody) where the trainer is root.
- "seccomp": a list of the system calls that Python computes with; everything else is refused.
- "landlock": a second line behind "files".
- "hook": an audit hook that turns attempts into plain errors. Python code can get round it; nothing depends on it
  where the other protections are active.
No environment, standard input empty, no inherited descriptors. `Sandbox.isolation` names what is active,
`Sandbox.missing` what is not, and why. Against an attacker with a flaw of the kernel, use a virtual machine as well.

Programs start from the same state: hash seed 0, `random` seeded with 0. A program's exit closes everything it had;
a server ends, killing its program, when its trainer is gone, however that died.
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

REQUIRED = {  # by mode "strict"; what to do where it is missing
    "limits": "raise the trainer's own limits (ulimit -H)",
    "hook": "run Python 3.11 or later",
    "privileges": "make Python and its packages readable for every user, or do not run as root",
    "seccomp": "use Linux on x86-64 or arm64 with CONFIG_SECCOMP_FILTER",
    "processes": "allow user namespaces",
    "network": "allow user namespaces",
    "ipc": "allow user namespaces",
    "files": "allow user namespaces; Linux 5.12 or later",
}
NAMESPACES = """User namespaces: sysctl user.max_user_namespaces above 0; on Ubuntu also \
kernel.apparmor_restrict_unprivileged_userns=0; in a container --security-opt seccomp=unconfined (Docker, Podman)"""
LONGEST = 1_000_000  # characters of a program


class Result(NamedTuple):
    """status: "ok"; "error" (uncaught exception, non-zero exit, killed); "timeout"; "memory"; "output" (too much).
    stdout: what was printed, at most output_bytes. error: last line of the traceback, or what ended the program."""

    status: str
    stdout: str
    error: str


# ---------------------------------------------------------------------------------------------------- trainer's side


class Sandbox:
    """`workers` fork servers; a context manager. Memory is counted beyond what the loaded interpreter itself uses.

    mode "strict" raises InputError where a protection that this system could have is missing; "best-effort" names it
    on stderr, once. Raises RuntimeError, saying why, when a server cannot start. `_without` is for tests: protections
    left out.
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
        if mode not in ("strict", "best-effort"):
            raise InputError(f"--sandbox {mode}: unknown; write strict or best-effort")
        limits = {
            "cpu_seconds": cpu_seconds,
            "memory_mb": memory_mb,
            "output_bytes": output_bytes,
            "without": _without,
        }
        self._threads = ThreadPoolExecutor(max(1, workers))
        self._servers = [_Server(limits) for _ in range(max(1, workers))]  # started together,
        try:
            for server in self._servers:
                server.wait_ready()  # then waited for
            self.isolation: tuple[str, ...] = self._servers[0].isolation
            self.missing: dict[str, str] = self._servers[0].missing
            self._judge(mode)
        except BaseException:
            self.close()
            raise
        self._free = list(self._servers)
        self._available = threading.Semaphore(len(self._servers))

    def _judge(self, mode: str) -> None:
        global _warned
        lacking = [name for name in REQUIRED if name in self.missing]
        reasons = "; ".join(f"{name}: {self.missing[name]}, {REQUIRED[name]}" for name in lacking)
        text = f"the sandbox lacks protections ({reasons})."
        text += (
            f" {NAMESPACES}."
            if any("user namespaces" in REQUIRED[name] for name in lacking)
            else ""
        )
        if lacking and mode == "strict":
            raise InputError(f"--sandbox strict: {text} --sandbox best-effort runs without")
        if lacking and not _warned:
            print(
                f"warning: {text} Run only programs that you trust, or use --sandbox strict",
                file=sys.stderr,
            )
            _warned = True

    def run(self, code: str) -> Result:
        """Run one program. May be called from several threads."""
        if len(code) > LONGEST:
            return Result("error", "", f"a program of {len(code)} characters; at most {LONGEST}")
        with self._available:
            server = self._free.pop()
            try:
                return server.run(code)
            finally:
                self._free.append(server)

    def start(self, code: str) -> "Future[Result]":
        """Run one program while the caller goes on, as soon as a worker is free."""
        return self._threads.submit(self.run, code)

    def run_many(self, codes: list[str]) -> list[Result]:
        """Results in the order of `codes`, spread over the workers; equal programs run once."""
        started = {code: self.start(code) for code in dict.fromkeys(codes)}
        return [started[code].result() for code in codes]

    def close(self) -> None:
        """Programs that have not begun are dropped, those that run are waited for: at most their time limit."""
        self._threads.shutdown(cancel_futures=True)
        for server in self._servers:
            server.stop()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()


_warned = False  # best-effort warns once in a process


class _Server:
    """The trainer's handle of one fork server; restarts it when it has died."""

    def __init__(self, limits: dict):
        self.limits = limits
        self.wall_seconds = 3 * limits["cpu_seconds"] + 2
        self.start()

    def start(self) -> None:
        self.scratch = tempfile.mkdtemp(prefix="sandbox-")
        spec = importlib.util.find_spec("sympy")
        packages = (
            [os.path.dirname(folder) for folder in spec.submodule_search_locations] if spec else []
        )
        config = {
            **self.limits,
            "wall_seconds": self.wall_seconds,
            "packages": packages,
            "scratch": self.scratch,
        }
        self.log = tempfile.TemporaryFile()
        root = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path += [{root!r}]; from data.sandbox import fork_server; sys.path.pop(); fork_server.main()"
        # Not -I: that would ignore the hash seed. -s -S -P and an otherwise empty environment isolate as well.
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
            self.process.kill()  # its server and the program die with it
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
            had = set(self.isolation)
            self.wait_ready()
            if had - set(self.isolation):
                raise RuntimeError(
                    f"the sandbox started again without {', '.join(had - set(self.isolation))}"
                )
            if failure.status == "timeout":
                break
        return failure
