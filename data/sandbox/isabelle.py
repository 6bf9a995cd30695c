"""Isabelle 2022 to 2025 as a prover, through the Isabelle server (a chapter of Isabelle's system
manual).

The server is a process with a session, which is Isabelle with a library loaded, and checks
theories in it. A command is a line `NAME JSON`, and the reply is OK or ERROR. A command that takes
time starts a task, which ends with FINISHED or FAILED and can be canceled.
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
    status: str  # proved, failed, timeout, or error (the prover itself failed)
    messages: tuple[Message, ...] = ()
    theory: str = ""  # the theory that was checked last
    seconds: float = 0.0

    @property
    def reason(self) -> str:
        """The first error as a line, or "" if there is none."""
        return next((" ".join(m.text.split()) for m in self.messages if m.kind == "error"), "")


_TRUSTED = {"holds_by_evaluation"}  # what `eval` trusts: Isabelle's code generator


class ServerError(Exception):
    """The server ended, or did not follow the protocol."""


class _Connection:
    """A client of the server. A message is a line `NAME ARGUMENT`; a long one is a line with a
    number, and then so many bytes."""

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
        """The next message as (name, argument). Raises TimeoutError and ServerError."""
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
        """The result of a command. Messages of tasks in between are skipped. Raises ServerError
        for an ERROR."""
        self.send(f"{name} {json.dumps(argument)}")
        while True:
            kind, result = self.read(deadline)
            if kind == "OK":
                return result
            if kind == "ERROR":
                raise ServerError(f"{name}: {result.get('message', result)}")

    def finished(self, task: str, deadline: float) -> tuple[bool, dict]:
        """Wait for the end of a task. Returns (whether it FINISHED, the result)."""
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
    """A prover: a server with a session. The first check starts the server, and the first check
    after a crash starts it again. It is not for several threads.

    afp: the folder `thys` of the Archive of Formal Proofs. grace: seconds to cancel a check that
    ran out of time, before the server is killed. start: seconds to start a session, whose image is
    built the first time (half an hour and more).
    """

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
        """The output of `isabelle version`, for example "Isabelle2025"."""
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
        """See Prover.check. Raises InputError if Isabelle cannot start."""
        self._begin()
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / f"{name}.thy").write_text(theory_source, encoding="utf-8")
                check = self._use(folder, name, began + timeout)
        except (ServerError, TimeoutError, KeyError) as error:
            self.close()  # the next check starts another server
            text = f"Isabelle's server failed ({error or 'no answer'})"
            check = Check("error", (Message("error", text),))
        return check._replace(theory=theory_source, seconds=time.monotonic() - began)

    def _use(self, folder: str, name: str, deadline: float) -> Check:
        theories = {"session_id": self._session_id, "theories": [name], "master_dir": folder}
        # The margin is so wide that no proposal is broken into lines. The client watches the time.
        arguments = theories | {"pretty_margin": 100000.0, "watchdog_timeout": 0.0}
        soon = time.monotonic() + self.grace
        task = self._connection.command("use_theories", arguments, soon)["task"]
        try:
            finished, result = self._connection.finished(task, deadline)
        except TimeoutError:
            self._cancel(task, theories)
            return Check("timeout")
        self._connection.command("purge_theories", theories, time.monotonic() + self.grace)
        return verdict(name, finished, result)

    def _cancel(self, task: str, theories: dict) -> None:
        """Cancel a task and remove the theory. If the server does not do it, it is killed."""
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
                raise ServerError(f"the first line is {line.strip()[:200]!r}")
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
                f"{self.program}: the server does not start ({what}); "
                f"try `isabelle build -b {self.session}`"
            ) from None

    def close(self) -> None:
        """End the server and everything that it started."""
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
    """What a result of `use_theories` means for a theory.

    The theory is proved if the server says that everything is well, if the theory came to its end,
    and if the theorem rests on no oracle except that of `eval`. The reply to `thm_oracles` lists
    the oracles.
    """
    nodes = result.get("nodes", [])
    nodes = [node for node in nodes if node.get("theory_name", "").split(".")[-1] == name]
    node = nodes[0] if nodes else {}
    messages = []
    for m in [*node.get("messages", []), *result.get("errors", [])]:
        line = m.get("pos", {}).get("line")
        messages.append(Message(m.get("kind", "writeln"), m.get("message", ""), line))
    messages = tuple(dict.fromkeys(messages))  # errors are listed twice
    if not finished:
        reason = str(result.get("message", "the task failed"))
        return Check("error", (Message("error", reason), *messages))

    lists = [message.text for message in messages if message.text.startswith("oracles:")]
    bad = []
    for text in lists:
        bad += [oracle for oracle in _oracles(text) if oracle.split(".")[-1] not in _TRUSTED]
    if bad:
        reason = f"the theorem rests on something that is not proved: {', '.join(bad)}"
        messages = (*messages, Message("error", reason))
    status = node.get("status", {})
    signs = result.get("ok"), status.get("ok"), status.get("consolidated")
    whole = all(sign is True for sign in signs)
    errors = any(message.kind == "error" for message in messages)
    return Check("proved" if whole and lists and not errors else "failed", messages)


def _oracles(text: str) -> list[str]:
    """The names in the lines after "oracles:". A line with more indentation is a proposition."""
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    names = []
    for line, indent in zip(lines, indents, strict=True):
        if indent == min(indents):
            names.append(line.split(":")[0].strip())
    return list(dict.fromkeys(names))
