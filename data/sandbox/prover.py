"""Formal proofs (paper 2.3.2): miniF2F by draft, sketch and prove, checked by Isabelle.

A model writes a proof of the benchmark's theorem in Isabelle's Isar language and leaves holes, each the word
`sledgehammer`, for what a machine can prove (Jiang et al. 2022). `prove` asks the prover for proofs of the holes, puts
them in and has the whole checked. A completion gives the proof alone: imports and statement are the benchmark's, and
the proof counts only if Isabelle accepts it and it rests on no unproved claim.

    prover = find_prover()                   # None where Isabelle is not installed
    checks = prove(problem, completions, prover)
"""

import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from data.io import InputError
from data.sandbox.isabelle import Check, Isabelle, Message

NO_PROVER = "no prover was present"
METHODS = 60  # seconds for a check with heuristics that have no limit of their own
STOP = "\nInformal:"  # where a completion goes on to the next example (the authors' stop word)


class Prover(Protocol):
    version: str

    def check(self, theory_source: str, name: str, timeout: float) -> Check:
        """Check a theory called `name`, for at most `timeout` seconds; its messages come with their lines."""


def find_prover(path: str | None = None, afp: str | None = None) -> Isabelle | None:
    """Isabelle at `path` (its program or its folder), at $ISABELLE_HOME, or on the PATH; None where there is none.
    `afp`, the folder `thys` of the Archive of Formal Proofs, is needed by two of miniF2F's problems. Nothing is started
    before the first check. Raises InputError where `path` or $ISABELLE_HOME has no program."""
    given = path or os.environ.get("ISABELLE_HOME")
    if not given:
        found = shutil.which("isabelle")
        return Isabelle(found, afp) if found else None
    program = Path(given) / "bin" / "isabelle" if Path(given).is_dir() else Path(given)
    if not os.access(program, os.X_OK) or program.is_dir():
        raise InputError(
            f"{given}: no Isabelle; give the folder of its installation, or bin/isabelle in it"
        )
    return Isabelle(str(program), afp)


# ---- What a completion may say ---------------------------------------------------------------------------------------


class Token(NamedTuple):
    kind: str  # comment, string, cartouche, word or sign
    text: str
    start: int


_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>\(\*)
      | (?P<cartouche>\\<open>|‹)
      | (?P<string>"(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`)
      | (?P<word>['?][A-Za-z][A-Za-z0-9_']* | [A-Za-z][A-Za-z0-9_']*(?:\.[A-Za-z][A-Za-z0-9_']*)*)
      | (?P<sign>\\<\^?[A-Za-z]+> | . )""",
    re.VERBOSE | re.DOTALL,
)
_NESTED = {"comment": re.compile(r"\(\*|\*\)"), "cartouche": re.compile(r"\\<open>|‹|\\<close>|›")}
_OPEN = {"(*", "\\<open>", "‹"}


def tokens(source: str) -> Iterator[Token]:
    """The tokens of Isabelle's outer syntax, comments among them, spaces left out. Raises ValueError for a comment,
    string or cartouche that does not end. Finer than Isabelle where they differ: no command goes unseen."""
    at = 0
    while at < len(source):
        found = _TOKEN.match(source, at)
        kind, end = found.lastgroup, found.end()
        if kind in _NESTED:
            depth = 1
            while depth:
                inner = _NESTED[kind].search(source, end)
                if not inner:
                    raise ValueError(f"a {kind} does not end")
                depth += 1 if inner[0] in _OPEN else -1
                end = inner.end()
        elif kind == "sign" and found[0] in ('"', "`"):
            raise ValueError("a string does not end")
        if kind != "space":
            yield Token(kind, source[at:end], at)
        at = end


# Whatever changes a theory, runs ML or writes files: the command keywords of Pure and HOL that are not of a proof. A
# proof is closed by the last of these before another statement is made, so none of them may stand in a completion.
_COMMANDS = frozenset(
    """
    sorry oops end theory begin imports keywords theorem lemma corollary proposition schematic_goal notepad lemmas
    declare axiomatization consts judgment typedecl type_synonym nonterminal default_sort definition abbreviation syntax
    no_syntax syntax_consts syntax_types translations no_translations notation no_notation type_notation
    no_type_notation alias type_alias hide_class hide_type hide_const hide_fact adhoc_overloading no_adhoc_overloading
    named_theorems context locale experiment class subclass instance instantiation overloading interpretation
    global_interpretation sublocale bundle open_bundle unbundle oracle setup local_setup attribute_setup method_setup
    method simproc_setup declaration syntax_declaration parse_ast_translation parse_translation print_translation
    typed_print_translation print_ast_translation ML ML_val ML_command ML_prf ML_file ML_file_debug ML_file_no_debug
    ML_export SML_file SML_file_debug SML_file_no_debug SML_import SML_export external_file bibtex_file ROOTS_file
    generate_file export_generated_files compile_generated_files scala_build_generated_files realizers realizability
    extract extract_type chapter section subsection subsubsection paragraph subparagraph text txt text_raw
    datatype codatatype datatype_compat datatype_record old_rep_datatype free_constructors bnf bnf_axiomatization
    copy_bnf lift_bnf primrec primcorec primcorecursive fun function termination partial_function nominal_datatype
    recdef inductive coinductive inductive_set coinductive_set inductive_cases inductive_simps case_of_simps
    simps_of_case fun_cases typedef record quotient_type quotient_definition lift_definition setup_lifting
    lifting_forget lifting_update functor specification ax_specification statespace code_datatype code_identifier
    code_lazy_type code_printing code_reserved code_reflect code_pred code_monad code_thms code_deps export_code
    print_codeproc value values quickcheck_generator quickcheck_params nitpick_params refute_params sledgehammer_params
    find_unused_assms mirabelle boogie_file spark_open
""".split()
)
# Methods and options that run ML or take something for proved, wherever they stand, in quotes too.
_NAMES = re.compile(
    r"\b(sorry|oops|tactic|raw_tactic|quick_and_dirty|skip_proofs?|smt_oracle|ML\w*|SML\w*|cheat\w*)\b"
)
_CONTROLS = {
    "\\<^sub>",
    "\\<^sup>",
    "\\<^bold>",
    "\\<^bsub>",
    "\\<^esub>",
    "\\<^bsup>",
    "\\<^esup>",
}


def forbidden(proof: str) -> str | None:
    """Why a proof is not even given to Isabelle, or None. In an interactive session Isabelle takes `sorry` for a proof,
    and ML in a proof can do anything: what could cheat is refused by its words, comments apart."""
    try:
        parts = [token for token in tokens(proof) if token.kind != "comment"]
    except ValueError as error:
        return str(error)
    for kind, text, _ in parts:
        # `...` is a string in some versions and in others is not
        names = re.findall(r"[\w.]+", text) if text[0] == "`" else [text] if kind == "word" else []
        if name := next((name for name in names if name in _COMMANDS), None) or (
            text == "\\<proof>" and text
        ):
            return f"{name!r} is not allowed in a proof"
        if name := _NAMES.search(text):
            return f"{name[0]!r} is not allowed in a proof"
        if kind == "string" and re.search(r"\\\d", text):
            return "a character by its number is not allowed in a proof"
        if control := next(
            (c for c in re.findall(r"\\<\^[A-Za-z_]+>", text) if c not in _CONTROLS), None
        ):
            return f"{control!r} is not allowed in a proof"
    for first, second in zip(parts, parts[1:], strict=False):
        if second.start == first.start + 1 and first.text + second.text in ("@{", "{*"):
            return f"{first.text + second.text!r} is not allowed in a proof"
    if any(
        re.search(r"@\s*\{", text) for kind, text, _ in parts if kind in ("string", "cartouche")
    ):
        return "'@{' is not allowed in a proof"
    return None


# ---- From a completion to a theory -----------------------------------------------------------------------------------

# Models write symbols as characters; theories have them by name.
_SYMBOLS = {
    ord(character): f"\\<{name}>"
    for character, name in zip(
        "≤≥≠∧∨¬∀∃∈∉⊆⊂∪∩⇒⟹⟶→⟷⟺λΣ∑∏×⋅∘ℕℤℚℝℂ",
        "le ge noteq and or not forall exists in notin subseteq subset union inter Rightarrow Longrightarrow longrightarrow"
        " rightarrow longleftrightarrow Longleftrightarrow lambda Sigma Sum Prod times cdot circ nat int rat real complex".split(),
        strict=True,
    )
}


def _statement(problem) -> tuple[str, str]:
    """(name of the theorem, its statement with that name) of a problem."""
    header, statement = problem.task["header"], problem.task["formal_statement"].strip()
    theory = re.search(r"\btheory\s+([A-Za-z][\w']*)", header)
    found = re.match(r"(?:theorem|lemma)\s+([A-Za-z][\w']*)\s*(?:\[[^\]]*\]\s*)?:(?!:)", statement)
    if not theory or not re.match(r"(?:theorem|lemma)\b", statement):
        raise InputError(
            f"problem {problem.id}: its header has no theory or its statement is no theorem; correct it"
        )
    if found:
        return found[1], statement
    return theory[1], re.sub(r"^(theorem|lemma)", rf"\1 {theory[1]}:", statement)


def _plain(source: str) -> list[Token]:
    return [token for token in tokens(source) if token.kind != "comment"]


def _words(parts: list[Token]) -> list[str]:
    """What a statement says, for comparison: without its name, spaces of strings made one."""
    texts = [" ".join(token.text.split()) for token in parts]
    if texts[2:3] == [":"]:
        return texts[:1] + texts[3:]
    return texts


def proof_of(problem, completion: str) -> str:
    """The proof in a completion: what follows the statement where it repeats that (alone or in a theory), the content
    of a ``` block, up to the next example. Raises ValueError where it states another theorem."""
    text = completion.split(STOP)[0]
    if fenced := re.search(r"```[^\n]*\n(.*?)(?:```|\Z)", text, re.DOTALL):
        text = fenced[1]
    text = text.translate(_SYMBOLS).strip()
    parts = _plain(text)
    if parts and parts[0].text in ("theory", "theorem", "lemma", "Formal"):
        wanted = _words(_plain(_statement(problem)[1].translate(_SYMBOLS)))
        for i, token in enumerate(parts):
            if token.text in ("theorem", "lemma"):
                named = parts[i + 2 : i + 3] and parts[i + 2].text == ":"
                length = len(wanted) + 2 * bool(named)
                if _words(parts[i : i + length])[1:] == wanted[1:]:
                    rest = parts[i + length :]
                    text, parts = text[rest[0].start :] if rest else "", rest
                    break
        else:
            raise ValueError("the completion states another theorem")
    if parts and parts[-1].text == "end":
        text = text[: -len("end")] if text.endswith("end") else text
    return text.strip()


def sketch_theory(problem, completion: str) -> str:
    """The theory that a completion makes: the benchmark's header and statement, the completion's proof, and a question
    to Isabelle for what the theorem rests on. Raises ValueError for a proof that is not allowed."""
    proof = proof_of(problem, completion)
    if not proof:
        raise ValueError("the completion has no proof")
    if why := forbidden(proof):
        raise ValueError(why)
    name, statement = _statement(problem)
    return (
        f"{problem.task['header'].rstrip()}\n\n{statement}\n{proof}\n\nthm_oracles {name}\n\nend\n"
    )


def holes(theory: str) -> list[tuple[int, int]]:
    """Where the holes of a theory are: (start, end) of each word `sledgehammer`, with its options."""
    parts, found = _plain(theory), []
    for i, token in enumerate(parts):
        if token.kind == "word" and token.text == "sledgehammer":
            end = token.start + len(token.text)
            if parts[i + 1 : i + 2] and parts[i + 1].text == "[":
                closing = next((p for p in parts[i + 2 :] if p.text == "]"), None)
                end = closing.start + 1 if closing else end
            found.append((token.start, end))
    return found


# ---- Filling the holes -----------------------------------------------------------------------------------------------

_PROPOSAL = re.compile(r"(Try this|Found proof):\s+((?:using\b[^\n]*?\s+)?by\b[^\n]*)")
_TIME = re.compile(r"\s*\((?:>\s*)?[\d.]+ m?s(?:, timed out)?\)\.?\s*$")


def proposals(messages: list[Message]) -> list[str]:
    """The proofs that `try0` and `sledgehammer` propose in their messages, each once, what they advise first."""
    found = [pair for message in messages for pair in _PROPOSAL.findall(message.text)]
    texts = [
        _TIME.sub("", text.strip())
        for _, text in sorted(found, key=lambda pair: pair[0] != "Try this")
    ]
    return list(dict.fromkeys(texts))


class _Hole:
    """What stands in a hole now, and what is to be tried after that: heuristics (by `try0`: auto, simp, blast,
    fastforce, force, presburger, linarith and more, each with a limit of time; then those that it lacks), and then
    Sledgehammer for `hammer` seconds. A step that ends in `sorry` asks for proofs; the check goes on without."""

    def __init__(self, theory: str, hammer: int):
        methods = ["arith", "auto simp: field_simps", "eval"]
        if "Sum_of_Squares" in theory:  # a method that is not imported is an error
            methods.insert(0, "sos")
        # of (m1 | m2) the first that succeeds is taken, and `m; fail` succeeds where m leaves no goal
        self.methods = "by (" + " | ".join(f"({method}; fail)" for method in methods) + ")"
        self.text, self.rest = (
            "try0 sorry",
            [self.methods, f"sledgehammer [timeout = {hammer}] sorry"],
        )

    @property
    def asks(self) -> bool:
        return self.text.endswith("sorry")

    def next(self, found: list[str] | None = None) -> bool:
        """Go on to the next proof, those found before what is left; False at the end."""
        self.rest = [*(found or []), *self.rest]
        self.text = self.rest.pop(0) if self.rest else ""
        return bool(self.text)


def _assemble(
    theory: str, places: list[tuple[int, int]], fillers: list[_Hole]
) -> tuple[str, list[int]]:
    """(the theory with the holes filled, the line of each)."""
    text, lines, at = "", [], 0
    for (start, end), hole in zip(places, fillers, strict=True):
        text += theory[at:start].rstrip(" ") + "\n"
        lines.append(text.count("\n") + 1)
        text += hole.text + "\n"
        at = end
    return text + theory[at:], lines


def _fill(theory: str, name: str, prover: Prover, timeout: float, hammer: int) -> Check:
    """Fill the holes of a theory and check it, for at most `timeout` seconds in all. Every round of the loop is one
    check of the whole, after which each hole that asked or failed goes on to its next proof."""
    places, deadline = holes(theory), time.monotonic() + timeout
    fillers = [_Hole(theory, hammer) for _ in places]
    while True:
        source, lines = _assemble(theory, places, fillers)
        slow = [
            hole for hole in fillers if hole.text == hole.methods
        ]  # these have no limit of their own
        left = deadline - time.monotonic()
        if left <= 0:
            return Check("timeout", theory=source)
        check = prover.check(source, name, min(left, METHODS) if slow else left)._replace(
            theory=source
        )
        if check.status == "timeout" and slow:
            moved, done = slow, [hole.next() for hole in slow]
        elif check.status in ("error", "timeout") or (
            check.status == "proved" and not any(h.asks for h in fillers)
        ):
            return check
        else:
            errors = [m.line for m in check.messages if m.kind == "error" and m.line]
            outside = min((line for line in errors if line not in lines), default=math.inf)
            if errors and outside == min(errors):
                return check  # what is wrong is not in a hole, nor comes of one
            # Most failed proofs let the check go on. After one that did not, nothing is known of what follows.
            moved = [
                (hole, line)
                for hole, line in zip(fillers, lines, strict=True)
                if (hole.asks or line in errors) and line < outside
            ]
            done = [
                hole.next(proposals([m for m in check.messages if m.line == line]))
                for hole, line in moved
            ]
        if not moved:
            return check
        if not all(done):
            return check._replace(
                status="failed", messages=(Message("error", "a hole has no proof"), *check.messages)
            )


def prove(
    problem, completions: list[str], prover: Prover | None, timeout: float = 600, hammer: int = 30
) -> list[Check]:
    """Check each completion as a proof of the problem's theorem, for at most `timeout` seconds, with Sledgehammer for
    `hammer` seconds a hole. Without a prover every check is an error that says so."""
    checks = []
    for completion in completions:
        began = time.monotonic()
        try:
            theory = sketch_theory(problem, completion)
        except ValueError as error:
            check = Check("failed", (Message("error", str(error)),))
        else:
            name = re.search(r"\btheory\s+([A-Za-z][\w']*)", theory)[1]
            check = (
                _fill(theory, name, prover, timeout, hammer)
                if prover
                else Check("error", (Message("error", NO_PROVER),))
            )
        checks.append(check._replace(seconds=time.monotonic() - began))
    return checks
