"""Formal proofs (paper 2.3.2): miniF2F by draft, sketch and prove, checked by Isabelle.

A model writes a proof of a theorem in Isabelle's language Isar. Where a machine can find the proof
of a step, the model leaves a hole, which is the word `sledgehammer` (Jiang et al. 2022). `prove`
lets the prover search proofs for the holes, fills them in, and has the whole theory checked. A
completion is only the proof: imports and statement come from the benchmark. The proof counts only
if Isabelle accepts it, and if it rests on no unproved claim.

    prover = find_prover()                   # None if Isabelle is not installed
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
METHODS = 60  # seconds for a check with heuristics that have no limit
STOP = "\nInformal:"  # where a completion goes on to the next example (the authors' stop word)


class Prover(Protocol):
    @property
    def version(self) -> str: ...

    def check(self, theory_source: str, name: str, timeout: float) -> Check:
        """Check the theory `name` for at most `timeout` seconds. The messages have their lines."""

    def close(self) -> None: ...


def find_prover(path: str | None = None, afp: str | None = None) -> Isabelle | None:
    """Isabelle at `path` (the program or its folder), at $ISABELLE_HOME, or on the PATH. None if
    there is none.

    afp: the folder `thys` of the Archive of Formal Proofs, which two problems of miniF2F need. The
    first check starts Isabelle. Raises InputError if `path` or $ISABELLE_HOME has no program.
    """
    place = path or os.environ.get("ISABELLE_HOME")
    if not place:
        installed = shutil.which("isabelle")
        return Isabelle(installed, afp) if installed else None
    program = Path(place) / "bin" / "isabelle" if Path(place).is_dir() else Path(place)
    if not os.access(program, os.X_OK) or program.is_dir():
        raise InputError(
            f"{place}: no Isabelle; give the folder of the installation, or bin/isabelle in it"
        )
    return Isabelle(str(program), afp)


# ---- What a completion may contain ---------------------------------------------------------------


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
    """The tokens of Isabelle's outer syntax with comments, without spaces.

    Raises ValueError for a comment, a string or a cartouche without an end. Where it differs from
    Isabelle it is finer, so that no command is missed.
    """
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


# Command keywords of Pure and HOL that do not belong to a proof: they change a theory, run ML or
# write files. A proof is closed before another statement is made, so none of them may be in a
# completion.
_COMMANDS = frozenset(
    """
    sorry oops end theory begin imports keywords theorem lemma corollary proposition schematic_goal
    notepad lemmas declare axiomatization consts judgment typedecl type_synonym nonterminal
    default_sort definition abbreviation syntax no_syntax syntax_consts syntax_types translations
    no_translations notation no_notation type_notation no_type_notation alias type_alias hide_class
    hide_type hide_const hide_fact adhoc_overloading no_adhoc_overloading named_theorems context
    locale experiment class subclass instance instantiation overloading interpretation
    global_interpretation sublocale bundle open_bundle unbundle oracle setup local_setup
    attribute_setup method_setup method simproc_setup declaration syntax_declaration
    parse_ast_translation parse_translation print_translation typed_print_translation
    print_ast_translation ML ML_val ML_command ML_prf ML_file ML_file_debug ML_file_no_debug
    ML_export SML_file SML_file_debug SML_file_no_debug SML_import SML_export external_file
    bibtex_file ROOTS_file generate_file export_generated_files compile_generated_files
    scala_build_generated_files realizers realizability extract extract_type chapter section
    subsection subsubsection paragraph subparagraph text txt text_raw datatype codatatype
    datatype_compat datatype_record old_rep_datatype free_constructors bnf bnf_axiomatization
    copy_bnf lift_bnf primrec primcorec primcorecursive fun function termination partial_function
    nominal_datatype recdef inductive coinductive inductive_set coinductive_set inductive_cases
    inductive_simps case_of_simps simps_of_case fun_cases typedef record quotient_type
    quotient_definition lift_definition setup_lifting lifting_forget lifting_update functor
    specification ax_specification statespace code_datatype code_identifier code_lazy_type
    code_printing code_reserved code_reflect code_pred code_monad code_thms code_deps export_code
    print_codeproc value values quickcheck_generator quickcheck_params nitpick_params refute_params
    sledgehammer_params find_unused_assms mirabelle boogie_file spark_open
    """.split()
)
# Methods and options that run ML or accept something without a proof. They are refused anywhere,
# also in quotes.
_NAMES = re.compile(
    r"\b(sorry|oops|tactic|raw_tactic|quick_and_dirty|skip_proofs?|smt_oracle|"
    r"ML\w*|SML\w*|cheat\w*)\b"
)
_CONTROLS = {rf"\<^{name}>" for name in "sub sup bold bsub esub bsup esup".split()}


def forbidden(proof: str) -> str | None:
    """The reason why a proof is not even sent to Isabelle, or None.

    In an interactive session Isabelle accepts `sorry` as a proof, and ML in a proof can do
    anything. So words that can cheat are refused, except in comments.
    """
    try:
        parts = [token for token in tokens(proof) if token.kind != "comment"]
    except ValueError as error:
        return str(error)
    for kind, text, _ in parts:
        # In some versions `...` is a string, in others it is not.
        names = re.findall(r"[\w.]+", text) if text[0] == "`" else [text] if kind == "word" else []
        for name in names:
            if name in _COMMANDS:
                return f"{name!r} is not allowed in a proof"
        if text == "\\<proof>":
            return f"{text!r} is not allowed in a proof"
        if name := _NAMES.search(text):
            return f"{name[0]!r} is not allowed in a proof"
        if kind == "string" and re.search(r"\\\d", text):
            return "a character by its number is not allowed in a proof"
        for control in re.findall(r"\\<\^[A-Za-z_]+>", text):
            if control not in _CONTROLS:
                return f"{control!r} is not allowed in a proof"
    for first, second in zip(parts, parts[1:], strict=False):
        if second.start == first.start + 1 and first.text + second.text in ("@{", "{*"):
            return f"{first.text + second.text!r} is not allowed in a proof"
    for kind, text, _ in parts:
        if kind in ("string", "cartouche") and re.search(r"@\s*\{", text):
            return "'@{' is not allowed in a proof"
    return None


# ---- From a completion to a theory ---------------------------------------------------------------

# Models write symbols as characters. Theories have them by name.
_SYMBOL_NAMES = (
    "≤ le ≥ ge ≠ noteq ∧ and ∨ or ¬ not ∀ forall ∃ exists ∈ in ∉ notin ⊆ subseteq ⊂ subset ∪ union "
    "∩ inter ⇒ Rightarrow ⟹ Longrightarrow ⟶ longrightarrow → rightarrow ⟷ longleftrightarrow "
    "⟺ Longleftrightarrow λ lambda Σ Sigma ∑ Sum ∏ Prod × times ⋅ cdot ∘ circ ℕ nat ℤ int ℚ rat "
    "ℝ real ℂ complex"
).split()
_SYMBOLS = {
    ord(character): f"\\<{name}>"
    for character, name in zip(_SYMBOL_NAMES[::2], _SYMBOL_NAMES[1::2], strict=True)
}


def _statement(problem) -> tuple[str, str]:
    """(name of the theorem, statement with this name) of a problem."""
    header, statement = problem.task["header"], problem.task["formal_statement"].strip()
    theory = re.search(r"\btheory\s+([A-Za-z][\w']*)", header)
    found = re.match(r"(?:theorem|lemma)\s+([A-Za-z][\w']*)\s*(?:\[[^\]]*\]\s*)?:(?!:)", statement)
    if not theory or not re.match(r"(?:theorem|lemma)\b", statement):
        raise InputError(
            f"problem {problem.id}: the header has no theory or the statement is not a theorem; "
            "correct it"
        )
    if found:
        return found[1], statement
    return theory[1], re.sub(r"^(theorem|lemma)", rf"\1 {theory[1]}:", statement)


def _plain(source: str) -> list[Token]:
    """The tokens without comments."""
    return [token for token in tokens(source) if token.kind != "comment"]


def _words(parts: list[Token]) -> list[str]:
    """The words of a statement, for comparison: without its name, and with single spaces in
    strings."""
    texts = [" ".join(token.text.split()) for token in parts]
    if texts[2:3] == [":"]:
        return texts[:1] + texts[3:]
    return texts


def proof_of(problem, completion: str) -> str:
    """The proof in a completion: the content of a ``` block, up to the next example, without the
    statement if the completion repeats it (alone or in a theory).

    Raises ValueError if the completion states another theorem.
    """
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
    """The theory of a completion: header and statement of the benchmark, the proof of the
    completion, and the command that lists what the theorem rests on.

    Raises ValueError for a proof that is not allowed.
    """
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
    """The holes of a theory: (start, end) of each word `sledgehammer` with its options."""
    parts, found = _plain(theory), []
    for i, token in enumerate(parts):
        if token.kind == "word" and token.text == "sledgehammer":
            end = token.start + len(token.text)
            if parts[i + 1 : i + 2] and parts[i + 1].text == "[":
                closing = next((p for p in parts[i + 2 :] if p.text == "]"), None)
                end = closing.start + 1 if closing else end
            found.append((token.start, end))
    return found


# ---- Filling the holes ---------------------------------------------------------------------------

_PROPOSAL = re.compile(r"(Try this|Found proof):\s+((?:using\b[^\n]*?\s+)?by\b[^\n]*)")
_TIME = re.compile(r"\s*\((?:>\s*)?[\d.]+ m?s(?:, timed out)?\)\.?\s*$")


def proposals(messages: list[Message]) -> list[str]:
    """The proofs in the messages of `try0` and `sledgehammer`, each once, the advised ones
    first."""
    found = []
    for message in messages:
        found += _PROPOSAL.findall(message.text)
    found.sort(key=lambda pair: pair[0] != "Try this")
    texts = [_TIME.sub("", text.strip()) for _, text in found]
    return list(dict.fromkeys(texts))


class _Hole:
    """The text in a hole now, and the texts that are tried after it.

    First come heuristics: `try0` with auto, simp, blast, fastforce, force, presburger, linarith and
    more, each with a limit of time, and then methods that `try0` lacks. Then comes Sledgehammer for
    `hammer` seconds. A step that ends in `sorry` searches for proofs, and the check goes on.
    """

    def __init__(self, theory: str, hammer: int):
        methods = ["arith", "auto simp: field_simps", "eval"]
        if "Sum_of_Squares" in theory:  # otherwise the method is an error
            methods.insert(0, "sos")
        # (m1 | m2) takes the first that succeeds, and `m; fail` succeeds if m leaves no goal.
        self.methods = "by (" + " | ".join(f"({method}; fail)" for method in methods) + ")"
        self.text = "try0 sorry"
        self.rest = [self.methods, f"sledgehammer [timeout = {hammer}] sorry"]

    @property
    def is_searching(self) -> bool:
        """Whether the hole only searches for proofs now."""
        return self.text.endswith("sorry")

    def next(self, new: list[str] | None = None) -> bool:
        """Go on to the next proof: first `new` ones, then those that are left. False at the end."""
        self.rest = [*(new or []), *self.rest]
        self.text = self.rest.pop(0) if self.rest else ""
        return bool(self.text)


def _assemble(
    theory: str, places: list[tuple[int, int]], fillers: list[_Hole]
) -> tuple[str, list[int]]:
    """(the theory with filled holes, the line of each hole)."""
    text, lines, at = "", [], 0
    for (start, end), hole in zip(places, fillers, strict=True):
        text += theory[at:start].rstrip(" ") + "\n"
        lines.append(text.count("\n") + 1)
        text += hole.text + "\n"
        at = end
    return text + theory[at:], lines


def _fill(theory: str, name: str, prover: Prover, timeout: float, hammer: int) -> Check:
    """Fill the holes of a theory and check it, for at most `timeout` seconds.

    Each round checks the whole theory once. After it, each hole that searched or failed goes on to
    its next proof.
    """
    places, deadline = holes(theory), time.monotonic() + timeout
    fillers = [_Hole(theory, hammer) for _ in places]
    while True:
        source, lines = _assemble(theory, places, fillers)
        slow = [hole for hole in fillers if hole.text == hole.methods]  # without a limit of time
        left = deadline - time.monotonic()
        if left <= 0:
            return Check("timeout", theory=source)
        check = prover.check(source, name, min(left, METHODS) if slow else left)
        check = check._replace(theory=source)
        if check.status == "timeout" and slow:
            moved, done = slow, [hole.next() for hole in slow]
        elif check.status in ("error", "timeout"):
            return check
        elif check.status == "proved" and not any(hole.is_searching for hole in fillers):
            return check
        else:
            errors = [m.line for m in check.messages if m.kind == "error" and m.line]
            outside = min((line for line in errors if line not in lines), default=math.inf)
            if errors and outside == min(errors):
                return check  # the error is not in a hole and does not come from a hole
            # After most failed proofs the check goes on. After an error outside, the rest is
            # unknown.
            moved = []
            done = []
            for hole, line in zip(fillers, lines, strict=True):
                if (hole.is_searching or line in errors) and line < outside:
                    moved.append(hole)
                    answers = [message for message in check.messages if message.line == line]
                    done.append(hole.next(proposals(answers)))
        if not moved:
            return check
        if not all(done):
            messages = (Message("error", "a hole has no proof"), *check.messages)
            return check._replace(status="failed", messages=messages)


def prove(
    problem, completions: list[str], prover: Prover | None, timeout: float = 600, hammer: int = 30
) -> list[Check]:
    """Check each completion as a proof of the theorem, for at most `timeout` seconds, with
    Sledgehammer for `hammer` seconds in each hole. Without a prover, each check is an error with
    that reason."""
    checks = []
    for completion in completions:
        began = time.monotonic()
        try:
            theory = sketch_theory(problem, completion)
        except ValueError as error:
            check = Check("failed", (Message("error", str(error)),))
        else:
            name = re.search(r"\btheory\s+([A-Za-z][\w']*)", theory)[1]
            check = Check("error", (Message("error", NO_PROVER),))
            if prover:
                check = _fill(theory, name, prover, timeout, hammer)
        checks.append(check._replace(seconds=time.monotonic() - began))
    return checks
