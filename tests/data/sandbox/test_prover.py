"""data/sandbox/prover.py and data/sandbox/isabelle.py: what a completion may contain, holes and
how they are filled, and the protocol of Isabelle. fake_isabelle.py stands in for Isabelle."""

import json
import re
import socket
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.io import InputError, read_jsonl
from data.sandbox import isabelle, prover
from data.sandbox.isabelle import Check, Isabelle, Message, verdict
from data.sandbox.prover import (
    NO_PROVER,
    find_prover,
    forbidden,
    holes,
    proof_of,
    proposals,
    prove,
    sketch_theory,
    tokens,
)

HEADER = "(* by us *)\ntheory small\n  imports Complex_Main\nbegin\n\n"
STATEMENT = 'theorem small:\n  fixes x :: nat\n  assumes "x = 2"\n  shows "x + x = 4"'
PROBLEM = SimpleNamespace(id="p", task={"header": HEADER, "formal_statement": STATEMENT})


def proof(*steps, end="show ?thesis by simp"):
    return "\n".join(
        ["proof -", *(f'  have "{step}" sledgehammer' for step in steps), f"  {end}", "qed"]
    )


# ---- Tokens and what is forbidden ----------------------------------------------------------------


def test_tokens_of_the_outer_syntax():
    source = '(* a (* b *) "c *) have "d \\" (* e" ‹f ‹g› \\<open>h\\<close>› x\'.y ?z.w \\<alpha> .. (*)*)'
    assert [(kind, text) for kind, text, _ in tokens(source)] == [
        ("comment", '(* a (* b *) "c *)'),
        ("word", "have"),
        ("string", '"d \\" (* e"'),
        ("cartouche", "‹f ‹g› \\<open>h\\<close>›"),
        ("word", "x'.y"),
        ("word", "?z"),
        ("sign", "."),
        ("word", "w"),
        ("sign", "\\<alpha>"),
        ("sign", "."),
        ("sign", "."),
        ("comment", "(*)*)"),
    ]


@pytest.mark.parametrize("source", ["(* a (* b *)", "\\<open>", '"abc', 'x "a\\"', "`a"])
def test_what_does_not_end_is_an_error(source):
    with pytest.raises(ValueError, match="does not end"):
        list(tokens(source))
    assert "does not end" in forbidden(source)


@given(st.text(alphabet="ab.'?\"`\\()*{}@<>^ \n‹›", max_size=30))
def test_tokens_are_the_source_without_its_spaces(source):
    try:
        found = list(tokens(source))
    except ValueError:
        return
    assert all(source[token.start :].startswith(token.text) for token in found)
    assert "".join("".join(token.text.split()) for token in found) == "".join(source.split())


@pytest.mark.parametrize(
    "cheat",
    [
        "sorry",
        "proof - show ?thesis sorry qed",
        "oops",
        'oops\ntheorem small2: "True" by simp',
        'by simp\naxiomatization where wrong: "False"',
        'by simp lemma x: "True"',
        "ML \\<open>Skip_Proof.it\\<close>",
        "ML_val ‹()›",
        "apply (tactic \\<open>Skip_Proof.cheat_tac 1\\<close>)",
        'by ("tactic" \\<open>all_tac\\<close>)',
        "by (raw_tactic ‹all_tac›)",
        "declare [[quick_and_dirty]]",
        "using [[quick_and_dirty = true]] by simp",
        'using [["quick_and_dirty"]] by simp',
        "supply [[smt_oracle = true]] by smt",
        'oracle cheat = "fn x => x"',
        'definition x where "x = 0"',
        "hide_const plus",
        'notation plus ("_ * _")',
        "end theory other imports Main begin",
        "setup ‹I›",
        "method_setup m = ‹x›",
        "\\<proof>",
        "(* nothing *) sorry",
        "(* (* *) sorry *) sorry",
        "..sorry",
        "1.sorry",
        "'a.sorry",
        "?x.sorry",
        "x\\<^sub>1.sorry",
        "\\<alpha>sorry",
        'by simp text ‹@{ML "OS.Process.exit"}›',
        "show ?thesis \\<comment> ‹@{ML 1}› by simp",
        "show ?thesis \\<comment> ‹\\<^ML>‹1›› by simp",
        "{* hidden *} by simp",
        "by simp \\<comment> ‹@{path ‹/etc/passwd›}›",
        'by ("\\116actic" ‹x›)',
        "(* unclosed",
        'notepad begin have "False" qed',
        "`sorry`",
        "` theorem x: `",
        "value 1",
        'export_code x in SML file "x"',
        "context begin",
        "instance nat :: finite",
        "lemmas y = refl",
        "by (Pure.tactic ‹x›)",
    ],
)
def test_cheating_is_refused(cheat):
    assert forbidden(cheat)
    check = prove(PROBLEM, [cheat], Refusing())[0]
    assert check.status == "failed" and check.reason


class Refusing:
    version = "none"

    def check(self, *_):
        raise AssertionError("given to the prover")


@pytest.mark.parametrize(
    "fair",
    [
        "by simp",
        'proof -\n  (* sorry, this is ML *)\n  have "x = 2" using assms by auto\n  then show ?thesis .\nqed',
        'by (simp add: assms(1) power2_eq_square[where x = "2::nat"])',
        "by (metis Suc_1 mult_2 oops_free_name)",
        "using ‹x = 2› by presburger",
        "using `x = 2` by presburger",
        "unfolding assms apply auto done",
        "sledgehammer",
        'proof (cases "x\\<^sub>1 = 1")\n case True show ?thesis .. next case False show ?thesis . qed',
        "by (rule class.axioms(1))",
    ],
)
def test_honest_proofs_are_let_through(fair):
    assert forbidden(fair) is None


# ---- Theories ------------------------------------------------------------------------------------


def test_the_theory_of_a_sketch():
    assert sketch_theory(PROBLEM, "  by (simp add: assms)\n\n\nInformal:\n(* the next *)") == (
        HEADER.rstrip()
        + "\n\n"
        + STATEMENT
        + "\nby (simp add: assms)\n\nthm_oracles small\n\nend\n"
    )


@pytest.mark.parametrize(
    "completion",
    [
        "by auto",
        "```isabelle\nby auto\n```\nThis ends it.",
        "Proof:\n```\nby auto",
        STATEMENT + "\n by auto",
        STATEMENT.replace(" small:", "").replace("\n  ", " (* as given *) ") + " by auto",
        "Formal:\n" + STATEMENT + " by auto",
        STATEMENT.replace("small", "other") + " by auto",
        STATEMENT.replace("theorem", "lemma") + "by auto",
        HEADER
        + 'definition y where "y = 0"\nlemma help: "True" by simp\n'
        + STATEMENT
        + " by auto\nend",
        "by auto end",
    ],
)
def test_the_proof_in_a_completion(completion):
    assert proof_of(PROBLEM, completion) == "by auto"


@pytest.mark.parametrize(
    "changed",
    [
        STATEMENT.replace("4", "5"),
        STATEMENT.replace("shows", 'and "False" shows'),
        'theorem small: "True"',
        "lemma x",
    ],
)
def test_another_statement_is_refused(changed):
    with pytest.raises(ValueError, match="another theorem"):
        sketch_theory(PROBLEM, changed + " by auto")


def test_characters_become_symbols_and_no_proof_is_none():
    assert 'have "x \\<le> 2 \\<and> True"' in sketch_theory(
        PROBLEM, 'proof - have "x ≤ 2 ∧ True" by simp qed'
    )
    with pytest.raises(ValueError, match="no proof"):
        sketch_theory(PROBLEM, STATEMENT)
    broken = SimpleNamespace(id="q", task={"header": "nothing", "formal_statement": STATEMENT})
    with pytest.raises(InputError, match="problem q"):
        sketch_theory(broken, "by simp")


def test_a_theorem_without_a_name_gets_its_theory_s():
    problem = SimpleNamespace(
        id="p", task=PROBLEM.task | {"formal_statement": 'theorem\n  "1 = (1::nat)"'}
    )
    assert 'theorem small:\n  "1 = (1::nat)"\nby simp\n\nthm_oracles small' in sketch_theory(
        problem, "by simp"
    )


def test_holes():
    theory = (
        'have "sledgehammer" (* sledgehammer *) sledgehammer then sledgehammer [timeout = 3] by x'
    )
    assert [theory[a:b] for a, b in holes(theory)] == ["sledgehammer", "sledgehammer [timeout = 3]"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_every_problem_makes_a_theory(real, split):
    count = 0
    for _, row in read_jsonl(real(f"deepseek-math-eval/minif2f/{split}.jsonl")):
        problem, statement = (
            SimpleNamespace(id=row["id"], task=row),
            row["formal_statement"].strip(),
        )
        alone = sketch_theory(problem, "  sledgehammer")
        repeated = [
            statement,
            row["header"] + statement,
            re.sub(r"\s+", "  ", statement),
            "Formal:\n" + statement,
        ]
        assert {sketch_theory(problem, text + "\n  sledgehammer\n") for text in repeated} == {alone}
        assert (
            len(holes(alone)) == 1
            and alone.count(statement) == 1
            and alone.startswith(row["header"].rstrip())
        )
        assert alone.endswith(f"\nsledgehammer\n\nthm_oracles {row['problem_name']}\n\nend\n")
        with pytest.raises(ValueError, match="another theorem"):
            sketch_theory(problem, statement.replace('"', '"True \\<and> ', 1) + "\n  sledgehammer")
        count += 1
    assert count == 244


def test_the_authors_sketches(real):
    files = sorted(real("minif2f/dsp_prompt_examples").glob("*.json"))
    for path in files:
        row = json.loads(path.read_text(encoding="utf-8"))
        formal = row["prompt"].split("Formal:\n")[1]
        statement, sketch = re.match(
            r"(theorem.*?)\n\s*(?=(?:proof|using|sledgehammer)\b)(.*)", formal, re.S
        ).groups()
        header = f"theory {row['tag']}\nimports Complex_Main begin\n"
        problem = SimpleNamespace(
            id=row["tag"], task={"header": header, "formal_statement": statement}
        )
        theory = sketch_theory(problem, sketch)
        assert theory == sketch_theory(problem, formal)
        found = holes(theory)
        assert len(found) == sketch.count("sledgehammer") > 0
        assert all(theory[a:b] == "sledgehammer" for a, b in found)
    assert len(files) == 20


def test_our_own_sketches():
    path = Path(prover.__file__).parents[1] / "problems" / "exemplars.toml"
    exemplars = tomllib.loads(path.read_text(encoding="utf-8"))["minif2f"]
    for exemplar in exemplars:
        problem = SimpleNamespace(
            id="own", task=exemplar | {"header": "theory own imports Complex_Main begin"}
        )
        theory = sketch_theory(problem, exemplar["proof"])
        assert len(holes(theory)) == exemplar["proof"].count("sledgehammer") > 0
    assert len(exemplars) > 1


# ---- Proposals and verdicts ----------------------------------------------------------------------


def test_proposals_of_try0_and_sledgehammer():
    texts = [
        "Found proof: by auto (3 ms)",
        "Try this: by simp (1 ms).",
        "Try this: by simp\n(simp: 1 ms; auto: 3 ms)",
        "cvc4: Try this: by (metis a b) (> 1.0 s, timed out)",
        'Trying "simp" and "auto"...',
        "No proof found",
        "e: Try this: using assms(1) by blast (0.8 ms)",
        "z3: Try this: apply simp (1 ms)",
    ]
    assert proposals([Message("writeln", text) for text in texts]) == [
        "by simp",
        "by (metis a b)",
        "using assms(1) by blast",
        "by auto",
    ]


def result(*messages, ok=True, **status):
    status = {"ok": ok, "consolidated": True} | status
    return {
        "ok": ok,
        "errors": [],
        "nodes": [
            {
                "theory_name": "Draft.small",
                "status": status,
                "messages": [{"kind": kind, "message": text} for kind, text in messages],
            }
        ],
    }


@pytest.mark.parametrize(
    "answer, status",
    [
        (result(("writeln", "oracles:")), "proved"),
        (result(("writeln", "oracles:\n  holds_by_evaluation: 1 = 1")), "proved"),
        (
            result(
                (
                    "writeln",
                    "oracles:\n    Code_Generator.holds_by_evaluation:\n      skip_proof = 1",
                )
            ),
            "proved",
        ),
        (result(("writeln", "oracles:\n  skip_proof:\n    False")), "failed"),
        (
            result(("writeln", "oracles:\n  holds_by_evaluation: 1 = 1\n  Pure.skip_proof: False")),
            "failed",
        ),
        (result(), "failed"),  # the check did not reach the last line
        (result(("writeln", "oracles:"), ("error", "Failed")), "failed"),
        (result(("writeln", "oracles:"), ok=False), "failed"),
        (result(("writeln", "oracles:"), consolidated=False), "failed"),
        ({"ok": True, "errors": [], "nodes": []}, "failed"),
    ],
)
def test_what_counts_as_proved(answer, status):
    assert verdict("small", True, answer).status == status
    assert verdict("small", False, answer | {"message": "Interrupt"}).status == "error"


# ---- Against the server --------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path):
    """The stand-in for `isabelle`, and the file with the commands that it receives."""
    path, log = tmp_path / "bin" / "isabelle", tmp_path / "log"
    path.parent.mkdir()
    stand_in = Path(__file__).with_name("fake_isabelle.py")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "{log}" "$@"\n')
    path.chmod(0o755)
    return path, lambda: [line.split()[0] for line in log.read_text().splitlines()]


@pytest.fixture(name="prover")
def running(program):
    with Isabelle(str(program[0]), grace=0.3, start=20) as prover:
        yield prover


def test_a_proof_is_checked_and_the_server_stays(prover, program):
    checks = prove(
        PROBLEM,
        ["by simp", proof("false").replace("sledgehammer", "by auto"), "by simp"],
        prover,
        10,
    )
    assert [check.status for check in checks] == ["proved", "failed", "proved"]
    assert "Failed to finish proof" in checks[1].reason
    assert checks[1].theory.splitlines()[checks[1].messages[0].line - 1] == '  have "false" by auto'
    assert program[1]() == ["session_start", *["use_theories", "purge_theories"] * 3]
    assert prover.version == "Isabelle2025"


@pytest.mark.parametrize(
    "steps, status, rounds, inserted",
    [
        (["easy"], "proved", 2, ["by simp"]),
        (
            ["easy", "arithmetic", "hard", "easy"],
            "proved",
            5,
            ["by simp", "by (metis hard_fact ", "(arith; fail)"],
        ),
        (["stuck", "easy"], "proved", 5, ["by simp", "by (metis hard_fact "]),
        (["false"], "failed", 3, []),
        (["easy", "false"], "failed", 3, []),
    ],
)
def test_holes_are_filled(prover, program, steps, status, rounds, inserted):
    check = prove(PROBLEM, [proof(*steps)], prover, 20)[0]
    assert check.status == status, check
    assert program[1]().count("use_theories") == rounds
    assert all(text in check.theory for text in inserted)
    if status == "proved":
        assert (
            "sorry" not in check.theory
            and "sledgehammer" not in check.theory
            and not holes(check.theory)
        )
    else:
        assert check.reason == "a hole has no proof"


def test_a_sketch_that_is_wrong_elsewhere_costs_one_check(prover, program):
    check = prove(PROBLEM, [proof("easy", end="blunder")], prover, 20)[0]
    assert check.status == "failed" and check.reason.startswith("Outer syntax error")
    assert program[1]().count("use_theories") == 1


def test_the_oracle_of_eval_is_trusted_and_a_proof_left_out_is_not(prover):
    assert (
        prove(PROBLEM, ['proof - have "computed"\nby eval\nqed'], prover, 10)[0].status == "proved"
    )
    theory = sketch_theory(PROBLEM, "by simp").replace("by simp", "sorry")
    check = prover.check(theory, "small", 10)
    assert check.status == "failed" and "Pure.skip_proof" in check.reason


def test_out_of_time_the_task_is_cancelled_and_the_server_stays(prover, program):
    began = time.monotonic()
    checks = prove(PROBLEM, [proof("endless"), "by simp"], prover, 0.5)
    assert [check.status for check in checks] == [
        "timeout",
        "proved",
    ] and time.monotonic() - began < 5
    assert program[1]() == [
        "session_start",
        *["use_theories", "cancel", "purge_theories"],
        *["use_theories", "purge_theories"],
    ]


def test_a_method_that_does_not_end_is_left_for_the_next(prover, program, monkeypatch):
    """`loops` does not end while arith is tried on the step before."""
    monkeypatch.setattr("data.sandbox.prover.METHODS", 0.3)
    check = prove(PROBLEM, [proof("hard", end='show "loops" by simp')], prover, 20)[0]
    assert check.status == "proved" and "by (metis hard_fact " in check.theory
    assert program[1]().count("cancel") == 1


@pytest.mark.parametrize(
    "trouble, status",
    [
        ("crash", "error"),
        ("hangup", "error"),
        ("garbage", "error"),
        ('endless"\n  have "deaf', "timeout"),
    ],
)
def test_after_a_crash_the_server_is_started_again(prover, program, trouble, status):
    checks = prove(PROBLEM, [proof(trouble), "by simp"], prover, 1)
    assert [check.status for check in checks] == [status, "proved"]
    assert status != "error" or "server failed" in checks[0].reason
    assert program[1]().count("session_start") == 2


def test_the_server_ends_with_the_prover(program):
    with Isabelle(str(program[0]), start=20) as prover:
        prover.check("theory t begin end", "t", 5)
        server = prover._server
        assert server.poll() is None
    assert server.poll() == 0 and program[1]()[-1] == "shutdown"


def test_what_cannot_start_says_so(program, tmp_path):
    with pytest.raises(InputError, match="Undefined session.*isabelle build -b Missing"):
        Isabelle(str(program[0]), session="Missing", start=20).check("", "t", 5)
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no java\n")
    broken.chmod(0o755)
    with pytest.raises(InputError, match="the first line is 'no java'"):
        Isabelle(str(broken), start=20).check("", "t", 5)
    broken.write_text("#!/bin/sh\nsleep 60\n")
    with pytest.raises(InputError, match="not within 0.2 s"):
        Isabelle(str(broken), start=0.2).check("", "t", 5)


def test_finding_the_prover(program, monkeypatch, tmp_path):
    monkeypatch.delenv("ISABELLE_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_prover() is None
    monkeypatch.setenv("PATH", str(program[0].parent))
    assert find_prover().program == str(program[0])
    assert find_prover(str(tmp_path)).program == str(program[0])  # the folder of the installation
    with pytest.raises(InputError, match="no Isabelle"):
        find_prover(str(tmp_path / "nowhere"))
    afp = find_prover(str(program[0]), afp="/afp/thys")
    assert afp.dirs == ["/afp/thys"] and "Symmetric_Polynomials" in afp.include


def test_a_theory_with_questions_left_is_never_the_proof():
    class Gullible:
        version = "1"

        def check(self, theory_source, name, timeout):
            return Check("proved")

    check = prove(PROBLEM, [proof("a", "b")], Gullible())[0]
    assert (
        check.status == "proved"
        and "sorry" not in check.theory
        and check.theory.count("eval; fail") == 2
    )


def test_without_a_prover_it_is_said():
    checks = prove(PROBLEM, ["by simp", "sorry"], None)
    assert [(check.status, check.reason) for check in checks] == [
        ("error", NO_PROVER),
        ("failed", "'sorry' is not allowed in a proof"),
    ]
    assert checks[0] == Check("error", checks[0].messages, "", checks[0].seconds)


# ---- The protocol by itself ----------------------------------------------------------------------


def transcript(data):
    """A server that reads the password and sends `data`, in pieces of three bytes. Returns the
    port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def talk():
        with listening, listening.accept()[0] as connection:
            connection.makefile("rb").readline()
            for i in range(0, len(data), 3):
                connection.sendall(data[i : i + 3])

    threading.Thread(target=talk, daemon=True).start()
    return listening.getsockname()[1]


def test_messages_short_and_long():
    long = 'FINISHED {"task": "t", "text": "≤ in bytes"}'.encode()
    port = transcript(
        b'OK {"isabelle_name": "x"}\r\nNOTE\n\nERROR "text"\n'
        + b"%d\n%s" % (len(long), long)
        + b'\nOK [1, 2]\n17\nNOTE {"a": "b"}\r\nFAILED{"task":"t"}\n'
    )
    deadline = time.monotonic() + 5
    client = isabelle._Connection(port, "secret", deadline)
    assert [client.read(deadline) for _ in range(6)] == [
        ("NOTE", {}),
        ("ERROR", {"value": "text"}),
        ("FINISHED", {"task": "t", "text": "≤ in bytes"}),
        ("OK", {"value": [1, 2]}),
        ("NOTE", {"a": "b"}),
        ("FAILED", {"task": "t"}),
    ]
    with pytest.raises(isabelle.ServerError, match="closed"):
        client.read(deadline)


@pytest.mark.parametrize("data", [b"", b"ERROR\n", b"12", b'9999\nOK {"a"'])
def test_a_server_that_does_not_let_in(data):
    with pytest.raises(isabelle.ServerError):
        isabelle._Connection(transcript(data), "wrong", time.monotonic() + 5)


def test_a_wrong_password_is_turned_away(prover):
    prover.check("theory t begin end", "t", 5)
    port = prover._connection.socket.getpeername()[1]
    with pytest.raises(isabelle.ServerError, match="closed"):
        isabelle._Connection(port, "wrong", time.monotonic() + 5)


def test_commands_by_themselves(prover):
    prover.check("theory t begin end", "t", 5)
    deadline = time.monotonic() + 5
    with pytest.raises(isabelle.ServerError, match="Bad command echo"):
        prover._connection.command("echo", {"text": "x" * 10000}, deadline)
    assert prover._connection.command("cancel", {"task": "none"}, deadline) == {}
