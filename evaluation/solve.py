"""Ways of solving a problem: what the model is shown, how it writes, where its answer stands, whether that is right.

Ways ("formats", sections 2.3 and 3.1 of the paper): "cot" chain of thought; "pot" a program whose last printed line is
the answer; "tool" text and programs in turn; "code" and "proof" for problems that ask for a program or a proof itself.
How a problem is put in each is a evaluation.few_shot.FewShot, here called the way.

Tool-integrated reasoning: where the model has written a ```python block and opens ```output, generation waits, the
block runs, what it printed is inserted, and the model goes on. A block sees what the blocks before it have defined:
they are run again before it, silently, since every program of the sandbox starts from the same state and a program
that goes on between two calls would hold a process, and its limits, for as long as the model thinks.
"""

import functools
import re
from collections.abc import Sequence

from data import answers, prompts
from data.answers import paper_rules
from data.problems.problem import Problem
from data.sandbox.prover import Prover, prove
from data.sandbox.sandbox import Result, Sandbox
from data.sandbox.unit_tests import passed, test_program
from data.tokenizer import Tokenizer
from evaluation.few_shot import FewShot
from generate import Sample
from reward import completion_text, printed, run_programs

OUTPUT_CHARS = 1000  # of what a program printed, the end is shown to the model
_BLOCK = re.compile(r"```python[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def zero_shot(format: str, template: str = "plain") -> FewShot:
    """The question alone, in a template of data.prompts."""
    return FewShot(
        lambda problem: prompts.problem_prompt(problem, format, template),
        tuple(prompts.stop_strings(format, template)),
        lambda text: prompts.program(text, format, template),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Prompts within the context


def fit(
    tokenizer: Tokenizer,
    way: FewShot,
    items: Sequence[Problem],
    shots: int,
    room: int,
    context: int,
    template: str,
) -> list[tuple[list[int], int]]:
    """(ids, number of exemplars) of each item's prompt: the most exemplars, up to `shots`, that leave `room` tokens of
    the context for an answer. A question that leaves less by itself stands alone; ids are [] where it leaves nothing.

    An exemplar's length is measured once for all prompts that begin with it, so that prompts of thousands of tokens are
    not encoded again and again; the chosen prompt is then encoded whole, and shortened further if that is longer.
    """

    def encoded(chosen: dict[int, int]) -> list[list[int]]:
        texts = [way.prompt(items[i], None if way.one_text else k) for i, k in chosen.items()]
        return prompts.encode(tokenizer, texts, template)

    chosen, found, measured = dict.fromkeys(range(len(items)), 0), [], {}
    if way.one_text:
        return [(ids if len(ids) < context else [], way.shots) for ids in encoded(chosen)]
    questions = (
        prompts.encode(tokenizer, [way.question(item) for item in items], template) if shots else []
    )
    for i, question in enumerate(questions):
        for k in range(shots, 0, -1):
            head = way.prompt(items[i], k).removesuffix(way.question(items[i]))
            if head not in measured:
                measured[head] = len(tokenizer.encode(head))
            if measured[head] + len(question) + room <= context:
                chosen[i] = k
                break
    found = [([], 0)] * len(items)
    while chosen:
        again = {}
        for (i, k), ids in zip(chosen.items(), encoded(chosen), strict=True):
            if k and len(ids) + room > context:
                again[i] = k - 1
            else:
                found[i] = ids if len(ids) < context else [], k
        chosen = again
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Programs between the lines


def blocks(segment: str) -> str:
    """The code of all ```python blocks of a text, joined; "" where there is none."""
    return "\n".join(block.strip("\n") for block in _BLOCK.findall(segment)).strip()


def session(earlier: Sequence[str], code: str) -> str:
    """One program that runs `code` in the state that the earlier blocks leave; only what `code` prints is printed."""
    if not earlier:
        return code
    return (
        "import contextlib, io\n"
        f"for _earlier in {list(earlier)!r}:\n"
        "    with contextlib.suppress(BaseException), contextlib.redirect_stdout(io.StringIO()):\n"
        "        exec(compile(_earlier, 'earlier.py', 'exec'), globals())\n"
        f"exec(compile({code!r}, 'program.py', 'exec'), globals())\n"
    )


def output_text(result: Result) -> str:
    """What the model is shown of a program's run: the end of what it printed and the last line of its error. Fences
    are taken out, since they would end the block."""
    shown = result.stdout.rstrip()
    if result.status != "ok":
        shown += f"\n{result.error}"
    return shown.strip("\n")[-OUTPUT_CHARS:].replace("```", "'''")


class Tool:
    """generate()'s `on_stop` hook: runs the blocks of all samples that wait in one decoding step together."""

    def __init__(self, tokenizer: Tokenizer, sandbox: Sandbox, rounds: int):
        self.tokenizer, self.sandbox, self.rounds = tokenizer, sandbox, rounds
        self.runs: dict[
            tuple[int, int], list[tuple[str, Result]]
        ] = {}  # (prompt, sample) -> (code, its result)
        self.exhausted: set[tuple[int, int]] = (
            set()
        )  # asked for a program beyond the limit of rounds

    def __call__(self, stopped: list[tuple[int, int, list[int]]]) -> list[list[int] | None]:
        answer: list[list[int] | None] = [None] * len(stopped)
        waiting = []
        for place, (prompt, sample, ids) in enumerate(stopped):
            written = self.tokenizer.decode(ids)
            before, fence, after = written.rpartition("```output")
            code = blocks(before.rpartition("```output")[2]) if fence and not after.strip() else ""
            if not code:  # another stop string, or nothing to run
                continue
            runs = self.runs.setdefault((prompt, sample), [])
            if len(runs) == self.rounds:
                self.exhausted.add((prompt, sample))
                continue
            waiting.append((place, runs, code, after))
        results = self.run([(runs, code) for _, runs, code, _ in waiting])
        for (place, _, _, after), result in zip(waiting, results, strict=True):
            newline = "" if "\n" in after else "\n"
            answer[place] = self.tokenizer.encode(f"{newline}{output_text(result)}\n```\n")
        return answer

    def run(self, waiting: list[tuple[list, str]]) -> list[Result]:
        """Run each code after the blocks before it, but for those that had to be ended; add it to them."""
        programs = [
            session([c for c, r in runs if r.status in ("ok", "error")], code)
            for runs, code in waiting
        ]
        results = self.sandbox.run_many(programs)
        for (runs, code), result in zip(waiting, results, strict=True):
            runs.append((code, result))
        return results


# ---------------------------------------------------------------------------------------------------------------------
# Where the answer stands


def read(
    items: Sequence[Problem],
    samples: Sequence[Sample],
    way: FewShot,
    format: str,
    tokenizer: Tokenizer,
    sandbox: Sandbox | None,
    tool: Tool | None,
    places: Sequence[tuple[int, int]],
) -> list[dict]:
    """What each sample says, unjudged: {"text", "answer", "finish", "tokens"}, tokens counting the model's own; where
    programs ran "program", the status of the last one ("none": it wrote none), and its "error" if it had one; for tool
    "rounds", the number of programs. One item a sample; `places` are their (prompt, sample) in `tool`. What is read
    from proofs comes from `check_proofs`."""
    texts = [completion_text(tokenizer, sample, way.stop) for sample in samples]
    found = [
        {"text": text, "answer": None, "finish": sample.finish, "tokens": sum(sample.mask)}
        for text, sample in zip(texts, samples, strict=True)
    ]
    if format == "cot":
        for item, one in zip(items, found, strict=True):
            one |= stated(item, one["text"])
    elif format == "pot":
        results = run_programs([way.program(text) for text in texts], sandbox)
        for item, one, result in zip(items, found, results, strict=True):
            one |= meant(item, printed(result))
            note_program(one, result)
    elif format == "tool":
        late = []  # a block at the end whose output the model did not ask for, and no answer in words
        for item, one, place in zip(items, found, places, strict=True):
            if place in tool.exhausted:
                one["finish"] = "rounds"
            final = one["text"].rpartition("```output")[2]
            runs = tool.runs.setdefault(place, [])
            if runs and "```output" in one["text"]:
                final = final.partition("\n```\n")[2]
            one |= stated(item, _BLOCK.sub("\n", final))
            if one["answer"] is None and len(runs) < tool.rounds and (code := blocks(final)):
                late.append((runs, code))
        tool.run(late)
        for item, one, place in zip(items, found, places, strict=True):
            runs = tool.runs[place]
            if one["answer"] is None and runs:
                one |= meant(item, printed(runs[-1][1]))
            note_program(one, runs[-1][1] if runs else None)
            one["rounds"] = len(runs)
    elif format == "code":
        tests = {
            (item.id, text): test_program(item, text)
            for item, text in zip(items, texts, strict=True)
        }
        results = dict(
            zip(tests, sandbox.run_many([test.code for test in tests.values()]), strict=True)
        )
        for item, one in zip(items, found, strict=True):
            key = item.id, one["text"]
            succeeded = results[key].status == "ok" and passed(
                results[key].stdout, tests[key].secret
            )
            one["answer"] = "passed" if succeeded else "failed"
            note_program(one, results[key])
    return found


def check_proofs(
    items: Sequence[Problem], found: list[dict], prover: Prover | None, seconds: float
) -> None:
    """Add "proof" to attempts at proofs: the status of data.sandbox.isabelle.Check; without a prover "no prover", or "refused"
    for a sketch that none would be shown. "error" says why it is not proved."""
    together: dict[str, list[dict]] = {}
    for item, one in zip(items, found, strict=True):
        together.setdefault(item.id, []).append(one)
    for item in {item.id: item for item in items}.values():
        attempts = together[item.id]
        checks = prove(item, [one["text"] for one in attempts], prover, seconds)
        for one, check in zip(attempts, checks, strict=True):
            unchecked = {"error": "no prover", "failed": "refused"}
            one["proof"] = check.status if prover else unchecked[check.status]
            if check.reason:
                one["error"] = check.reason


def note_program(one: dict, result: Result | None) -> None:
    one["program"] = result.status if result else "none"
    if result and result.error:
        one["error"] = result.error


def stated(item: Problem, text: str) -> dict:
    """`meant` of the answer that a text states. To a "text" problem that is what follows "the answer is"."""
    if item.kind == "text" and (said := re.findall(r"(?i)\banswer is:?[^\S\n]*(.*)", text)):
        return meant(item, said[-1].strip().removesuffix(".").strip() or None)
    if item.kind == "choice" and (said := answers.extract(text)) is None:
        return {"answer": answers.choice(text, item.choices)}  # a last "(B)"
    return meant(item, answers.extract(text))


_LETTERS = re.compile(r"\W*([A-J])(?:(?:\W|and|和|与)*([A-J]))*\W*")  # A, ACD, "A, C and D"


def meant(item: Problem, said: str | None) -> dict:
    """{"answer"}, and for a choice whose letter had to be looked for in what was said, that in "said"."""
    if said is None or item.kind != "choice":
        return {"answer": said}
    if _LETTERS.fullmatch(said):
        return {"answer": "".join(sorted(set(re.findall("[A-J]", said))))}
    return {"answer": answers.choice(said, item.choices), "said": said}


# ---------------------------------------------------------------------------------------------------------------------
# Whether it is right


def judge(item: Problem, one: dict) -> None:
    """Add to an attempt: "right" by the relaxed rules with "reason", "strict" by the strict ones with "strict_reason"
    (reasons of data.answers.Verdict; for code and proofs "value" where they fail). The answer to a choice is strictly
    right as a letter alone. Where a proof was not checked, right and strict are None."""
    if item.kind == "proof":
        right = {"proved": True, "failed": False, "timeout": False}.get(one["proof"])
        reason = {None: "not_checked", True: "equal", False: "value"}[right]
        one |= {"right": right, "reason": reason, "strict": right, "strict_reason": reason}
        return
    verdict = _verdicts(item.kind, item.answer, one["answer"], "said" not in one)
    one["right"], one["reason"], one["strict"], one["strict_reason"] = verdict


@functools.lru_cache(65_536)
def _verdicts(
    kind: str, gold: str, answer: str | None, plainly: bool
) -> tuple[bool, str, bool, str]:
    if answer is None:
        return False, "no_answer", False, "no_answer"
    if kind == "answer":
        relaxed, strict = answers.compare(gold, answer), answers.compare(gold, answer, strict=True)
        return relaxed.equal, relaxed.reason, strict.equal, strict.reason
    if kind == "code":
        relaxed = strict = answer == "passed"
    elif kind == "choice":
        relaxed, strict = answer == gold, answer == gold and plainly
    else:
        relaxed, strict = plain_text(gold) == plain_text(answer), gold.strip() == answer.strip()
    reasons = ["equal" if equal else "value" for equal in (relaxed, strict)]
    return relaxed, reasons[0], strict, "format" if relaxed and not strict else reasons[1]


def paper_right(item: Problem, text: str, benchmark: str, zero_shot: bool) -> bool:
    """Whether the paper's own evaluation counts a chain of thought as right (data/answers/paper_rules.py). Its rules for base
    models look for the wording of the authors' exemplars."""
    gold: str | list[str] = item.answer
    if benchmark == "math":
        gold = paper_rules.paper_extract(item.solution or "", benchmark, item.question)
    elif benchmark == "gaokao_mathcloze":  # $(a, b)$: two blanks
        blanks = item.answer[2:-2].split(", ") if item.answer.startswith("$(") else [item.answer]
        gold = [paper_rules.normalise(blank) for blank in blanks]
    said = paper_rules.paper_extract(text, benchmark, item.question, zero_shot)
    return paper_rules.paper_equal(gold, said, benchmark)


def same(kind: str, a: str, b: str) -> bool:
    """Whether two samples of a problem of this kind gave the same answer."""
    if kind == "answer" and max(len(a), len(b)) < 100 and a.isdecimal() and b.isdecimal():
        return int(a) == int(b)  # most pairs of a vote
    return answers.compare(a, b).equal if kind == "answer" else plain_text(a) == plain_text(b)


def plain_text(text: str) -> str:
    """A short text without case, brackets around the whole, quotes, full stop and doubled spaces."""
    text = re.sub(r"\s+", " ", text.strip().strip(".\"'`*").strip()).casefold()
    return text[1:-1] if re.fullmatch(r"\([^()]*\)", text) else text
