"""Isabelle 2022 to 2025 as a prover, through its server: chapter "The Isabelle server" of the system manual.

The server is a process that keeps a session, Isabelle with a library loaded, and checks theories in it: a command is a
line `NAME JSON`, its answer OK or ERROR; what takes time is a task, which ends with FINISHED or FAILED and can be
cancelled.
"""

import atexit
import json
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from data.io import InputError


class Message(NamedTuple):
    kind: str  # writeln, warning or error
    text: str
    line: int | None = None  # of the theory, from 1


class Check(NamedTuple):
    status: str  # proved, failed, timeout, or error: the prover itself failed
    messages: tuple[Message, ...] = ()
    theory: str = ""  # as it was checked last
    seconds: float = 0.0

    @property
    def reason(self) -> str:
        """The first error in one line; nothing where there is none."""
        return next((" ".join(m.text.split()) for m in self.messages if m.kind == "error"), "")


_TRUSTED = {"holds_by_evaluation"}  # what `eval` trusts: Isabelle's code generator


class ServerError(Exception):
    """The server ended, or said what is not of its protocol."""


class _Connection:
    """A client of the server: lines `NAME ARGUMENT`, or a line with a number of bytes and then as many."""

    def __init__(self, port: int, password: str, deadline: float):
        try:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout=_left(deadline))
        except OSError as error:
            raise ServerError(f"no connection to the server ({error})") from None
        self.received = b""
        self.send(password)
        if self.read(deadline)[0] != "OK":
            raise ServerError("the server did not take the password")

    def send(self, line: str) -> None:
        try:
            self.socket.sendall(line.encode() + b"\n")
        except OSError as error:
            raise ServerError(f"the server has closed the connection ({error})") from None

    def _until(self, enough, deadline: float) -> None:
        while not enough():
            self.socket.settimeout(_left(deadline))
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError as error:
                raise ServerError(f"the connection broke ({error})") from None
            if not data:
                raise ServerError("the server has closed the connection")
            self.received += data

    def read(self, deadline: float) -> tuple[str, dict]:
        """The next message: (name, argument). Raises TimeoutError and ServerError."""
        while True:
            self._until(lambda: b"\n" in self.received, deadline)
            line, _, rest = self.received.partition(b"\n")
            if line.strip().isdigit():
                size = int(line)
                self.received = rest
                self._until(lambda size=size: len(self.received) >= size, deadline)
                line, rest = self.received[:size], self.received[size:]
            self.received = rest
            if line.strip():
                break
        text = line.decode("utf-8", "replace").strip()
        name = re.match(r"[A-Za-z0-9_.]*", text)[0]
        try:
            argument = json.loads(text[len(name) :] or "{}")
        except json.JSONDecodeError:
            argument = None
        if name not in ("OK", "ERROR", "FINISHED", "FAILED", "NOTE"):
            raise ServerError(f"the server said {text[:80]!r}")
        return name, argument if isinstance(argument, dict) else {"value": argument}

    def command(self, name: str, argument: dict, deadline: float) -> dict:
        """The result of a command; messages of tasks in between are left out. Raises ServerError for an ERROR."""
        self.send(f"{name} {json.dumps(argument)}")
        while True:
            kind, result = self.read(deadline)
            if kind == "OK":
                return result
            if kind == "ERROR":
                raise ServerError(f"{name}: {result.get('message', result)}")

    def finished(self, task: str, deadline: float) -> tuple[bool, dict]:
        """(whether a task finished, its result), once it has ended."""
        while True:
            kind, result = self.read(deadline)
            if kind in ("FINISHED", "FAILED") and result.get("task") == task:
                return kind == "FINISHED", result


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Isabelle:
    """A prover: one server with one session, started by the first check and again after a crash. Not for several
    threads. `grace` seconds are given to a check that ran out of time to be cancelled, before the server is killed;
    `start` seconds to start a session, whose image is built the first time (half an hour and more)."""

    def __init__(
        self,
        program: str,
        afp: str | None = None,
        session: str = "HOL-Number_Theory",
        grace: float = 10,
        start: float = 7200,
    ):
        self.program, self.session, self.grace, self.start = program, session, grace, start
        self.dirs = [afp] if afp else []
        self.include = ["HOL-Library", "HOL-Analysis", *(["Symmetric_Polynomials"] if afp else [])]
        self._version = self._server = self._connection = self._session_id = None

    @property
    def version(self) -> str:
        """As `isabelle version` says it, e.g. "Isabelle2025"."""
        if self._version is None:
            try:
                run = subprocess.run(
                    [self.program, "version"],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=True,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise InputError(
                    f"{self.program}: does not run ({error}); correct the installation"
                ) from None
            self._version = run.stdout.strip()
        return self._version

    def check(self, theory_source: str, name: str, timeout: float) -> Check:
        """See Prover.check. Raises InputError where Isabelle cannot be started."""
        self._begin()
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / f"{name}.thy").write_text(theory_source, encoding="utf-8")
                check = self._use(folder, name, began + timeout)
        except (ServerError, TimeoutError, KeyError) as error:
            self.close()  # the next check starts another
            check = Check(
                "error", (Message("error", f"Isabelle's server failed ({error or 'no answer'})"),)
            )
        return check._replace(theory=theory_source, seconds=time.monotonic() - began)

    def _use(self, folder: str, name: str, deadline: float) -> Check:
        theories = {"session_id": self._session_id, "theories": [name], "master_dir": folder}
        # a margin so wide that no proposal is broken into lines; the client watches the time
        arguments = theories | {"pretty_margin": 100000.0, "watchdog_timeout": 0.0}
        task = self._connection.command("use_theories", arguments, time.monotonic() + self.grace)[
            "task"
        ]
        try:
            finished, result = self._connection.finished(task, deadline)
        except TimeoutError:
            self._cancel(task, theories)
            return Check("timeout")
        self._connection.command("purge_theories", theories, time.monotonic() + self.grace)
        return verdict(name, finished, result)

    def _cancel(self, task: str, theories: dict) -> None:
        """End a task and take its theory out; where the server does not obey, it is killed."""
        try:
            soon = time.monotonic() + self.grace
            self._connection.command("cancel", {"task": task}, soon)
            self._connection.finished(task, soon)
            self._connection.command("purge_theories", theories, soon)
        except (TimeoutError, ServerError):
            self.close()

    def _begin(self) -> None:
        if self._server and self._server.poll() is None and self._connection:
            return
        self.close()
        name, deadline = f"prover-{uuid.uuid4().hex}", time.monotonic() + self.start
        try:
            self._server = subprocess.Popen(
                [self.program, "server", "-n", name],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            atexit.register(self.close)
            line = _first_line(self._server.stdout, deadline)
            found = re.search(r'server "[^"]*" = 127\.0\.0\.1:(\d+) \(password "([^"]*)"\)', line)
            if not found:
                raise ServerError(f"its first line is {line.strip()[:200]!r}")
            self._connection = _Connection(int(found[1]), found[2], deadline)
            arguments = {
                "session": self.session,
                "dirs": self.dirs,
                "include_sessions": self.include,
            }
            task = self._connection.command("session_start", arguments, deadline)["task"]
            finished, result = self._connection.finished(task, deadline)
            if not finished:
                raise ServerError(f"session {self.session}: {result.get('message', result)}")
            self._session_id = result["session_id"]
        except (OSError, ServerError, KeyError) as error:  # TimeoutError is an OSError
            self.close()
            what = f"not within {self.start} s" if isinstance(error, TimeoutError) else error
            raise InputError(
                f"{self.program}: its server does not start ({what}); try `isabelle build -b "
                f"{self.session}`"
            ) from None

    def close(self) -> None:
        """End the server and all that it started."""
        atexit.unregister(self.close)
        if self._connection:
            try:
                self._connection.send("shutdown")
                self._server.wait(self.grace)
            except (ServerError, subprocess.TimeoutExpired):
                pass
            self._connection.socket.close()
        if self._server:
            try:
                os.killpg(self._server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._server.wait()
            self._server.stdout.close()
        self._server = self._connection = self._session_id = None

    def __enter__(self) -> "Isabelle":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _first_line(pipe, deadline: float) -> str:
    data = b""
    while b"\n" not in data:
        if select.select([pipe], [], [], _left(deadline))[0]:
            byte = os.read(pipe.fileno(), 1)
            if not byte:
                break
            data += byte
    return data.decode("utf-8", "replace")


def verdict(name: str, finished: bool, result: dict) -> Check:
    """What `use_theories` says of a theory. It is proved if the server says that all is well, the theory came to its
    end, and the theorem rests on no oracle but that of `eval`: the answer to `thm_oracles` lists them."""
    node = next(
        (n for n in result.get("nodes", []) if n.get("theory_name", "").split(".")[-1] == name), {}
    )
    messages = [
        Message(m.get("kind", "writeln"), m.get("message", ""), m.get("pos", {}).get("line"))
        for m in [*node.get("messages", []), *result.get("errors", [])]
    ]
    messages = tuple(dict.fromkeys(messages))  # errors are listed twice
    if not finished:
        return Check(
            "error", (Message("error", str(result.get("message", "the task failed"))), *messages)
        )
    status = node.get("status", {})
    oracles = [m.text for m in messages if m.text.startswith("oracles:")]
    bad = [
        oracle
        for text in oracles
        for oracle in _oracles(text)
        if oracle.split(".")[-1] not in _TRUSTED
    ]
    if bad:
        messages = (
            *messages,
            Message("error", f"the theorem rests on what is not proved: {', '.join(bad)}"),
        )
    whole = (
        result.get("ok") is True and status.get("ok") is True and status.get("consolidated") is True
    )
    errors = any(message.kind == "error" for message in messages)
    return Check("proved" if whole and oracles and not errors else "failed", messages)


def _oracles(text: str) -> list[str]:
    """The names in "oracles:" and a line for each, what is indented further being a proposition."""
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    names = [
        line.split(":")[0].strip()
        for line, indent in zip(lines, indents, strict=True)
        if indent == min(indents)
    ]
    return list(dict.fromkeys(names))
