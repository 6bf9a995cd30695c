"""Stands in for the program `isabelle`: it follows the protocol of the Isabelle server in the
system manual, and its prover knows a few propositions by name.

    fake_isabelle.py LOG (version | server -n NAME)

A proposition is the last string before a hole or before `by`. PROOFS says what proves it. LOG
receives the commands.
"""

import json
import os
import re
import socket
import sys
import textwrap
import threading
import time
import uuid

HARD = "by (metis hard_fact add.commute mult.assoc power2_eq_square linorder_not_less zero_less_numeral)"
PROOFS = {
    "easy": {"by simp"},
    "arithmetic": {"by ((arith; fail) | (auto simp: field_simps; fail) | (eval; fail))"},
    "hard": {HARD},
    "computed": {"by eval"},
    "stuck": {HARD},  # after another proof of this fails, the check does not go on
    "false": set(),
}
PROPOSED = {
    "try0 sorry": {"easy": "Try this: by simp (12 ms)"},
    "sledgehammer [timeout = 30] sorry": dict.fromkeys(
        ("hard", "stuck"),
        (
            "cvc4: Try this: by (smt (z3) nothing) (> 1.0 s, timed out)\n"
            f"vampire: Try this: {HARD} (0.3 s)"
        ),
    ),
}
LOG = sys.argv[1] if len(sys.argv) > 1 else os.devnull


class Client(threading.Thread):
    def __init__(self, connection, password, stop):
        super().__init__(daemon=True)
        self.connection, self.password, self.stop = connection, password, stop
        self.lock, self.cancelled = threading.Lock(), set()

    def say(self, name, argument=None, long=None, pieces=False):
        line = name if argument is None else f"{name} {json.dumps(argument)}"
        data = line.encode() + b"\n"
        if long or (long is None and len(data) > 100):
            data = b"%d\n" % len(data) + data
        with self.lock:
            for i in range(0, len(data), 7 if pieces else len(data)):
                self.connection.sendall(data[i : i + 7 if pieces else None])
                time.sleep(0.0005 * pieces)

    def lines(self):
        file = self.connection.makefile("rb")
        while line := file.readline():
            line = line.rstrip(b"\r\n")
            yield (file.read(int(line)).strip() if line.isdigit() else line).decode()

    def run(self):
        lines = self.lines()
        if next(lines, None) != self.password:
            return self.connection.close()
        self.say("OK", {"isabelle_id": "fake", "isabelle_name": "Isabelle2025"})
        for line in lines:
            with open(LOG, "a") as log:
                log.write(line + "\n")
            name, _, rest = line.partition(" ")
            argument = json.loads(rest) if rest else None
            if name == "cancel":
                self.cancelled.add(argument["task"])
                self.say("OK")
            elif name == "purge_theories":
                self.say("OK", {"purged": [], "retained": []})
            elif name == "shutdown":
                self.say("OK")
                self.stop()
            elif name in ("session_start", "use_theories"):
                task = str(uuid.uuid4())
                self.say("OK", {"task": task})
                threading.Thread(
                    target=getattr(self, name), args=(task, argument), daemon=True
                ).start()
            else:
                self.say("ERROR", {"kind": "error", "message": f"Bad command {name}"})

    def session_start(self, task, argument):
        self.say("NOTE", {"kind": "writeln", "message": "Session HOL ...", "task": task})
        if argument["session"] == "Missing":
            return self.say(
                "FAILED",
                {"kind": "error", "message": 'Undefined session(s): "Missing"', "task": task},
            )
        self.say(
            "FINISHED", {"session_id": str(uuid.uuid4()), "tmp_dir": "/tmp/fake", "task": task}
        )

    def use_theories(self, task, argument):
        name = argument["theories"][0]
        with open(f"{argument['master_dir']}/{name}.thy", encoding="utf-8") as file:
            source = file.read()
        if '"crash"' in source:
            os._exit(1)
        if '"hangup"' in source:
            return self.connection.shutdown(socket.SHUT_RDWR)
        if '"garbage"' in source:
            return self.say("WHAT is this", long=False)
        if '"loops"' in source and "arith" in source or '"endless"' in source:
            while task not in self.cancelled or '"deaf"' in source:
                time.sleep(0.005)
            return self.say("FAILED", {"kind": "error", "message": "Interrupt", "task": task})
        messages, proposition, stuck = [], "", False
        for number, line in enumerate(source.split("\n"), 1):
            proposition = re.findall(r'"([^"]*)"', line)[-1:] or [proposition]
            proposition = proposition[0]

            def add(kind, text, number=number):
                margin = int(argument.get("pretty_margin", 76))  # it breaks lines
                text = "\n".join(
                    textwrap.fill(line, margin, drop_whitespace=False) for line in text.split("\n")
                )
                messages.append(
                    {"kind": kind, "message": text, "pos": {"line": number, "file": name}}
                )

            line = line.strip()
            if stuck:
                add("error", "Illegal application of proof command")
            elif line in PROPOSED or line == "sorry":
                add("writeln", PROPOSED.get(line, {}).get(proposition, "No proof found"))
            elif (
                "?thesis" not in line
                and (proof := re.search(r"\bby\b.*", line))
                and proof[0] not in PROOFS.get(proposition, {proof[0]})
            ):
                add("error", f"Failed to finish proof:\ngoal (1 subgoal):\n 1. {proposition}")
                stuck = proposition == "stuck"
            elif line.startswith("thm_oracles"):
                found = ["  Pure.skip_proof:\n    false"] * ("sorry" in source)
                found += ["  Code_Generator.holds_by_evaluation: computed"] * ("by eval" in source)
                add("writeln", "\n".join(["oracles:", *found]))
            elif "blunder" in line:
                add("error", "Outer syntax error: command expected")
        errors = [message for message in messages if message["kind"] == "error"]
        status = {
            "ok": not errors,
            "total": 9,
            "unprocessed": 0,
            "running": 0,
            "warned": 0,
            "failed": len(errors),
            "finished": 9,
            "canceled": False,
            "consolidated": True,
            "percentage": 100,
        }
        self.say("NOTE", {"kind": "writeln", "message": f"theory Draft.{name} 100%", "task": task})
        self.say(
            "FINISHED", {"task": str(uuid.uuid4()), "ok": True, "errors": [], "nodes": []}
        )  # a message of another task
        self.say(
            "FINISHED",
            {
                "ok": not errors,
                "errors": errors,
                "task": task,
                "nodes": [
                    {
                        "node_name": f"{name}.thy",
                        "theory_name": f"Draft.{name}",
                        "status": status,
                        "messages": messages,
                        "exports": [],
                    }
                ],
            },
            pieces=True,
        )


def serve(name):
    listening, password = socket.create_server(("127.0.0.1", 0)), str(uuid.uuid4())
    print(
        f'server "{name}" = 127.0.0.1:{listening.getsockname()[1]} (password "{password}")',
        flush=True,
    )
    while True:
        Client(listening.accept()[0], password, lambda: os._exit(0)).start()


if __name__ == "__main__":
    if sys.argv[2] == "version":
        print("Isabelle2025")
    else:
        serve(sys.argv[4])
