"""Ways of solving a problem: what the model is shown, how it writes, where its answer stands, whether that is right.

Ways ("formats", sections 2.3 and 3.1 of the paper): "cot" chain of thought; "pot" a program whose last printed line is
the answer; "tool" text and programs in turn; "code" and "proof" for problems that ask for a program or a proof itself.
A way is an object with `prompt(problem, shots) -> str`, `stop`, `program(text) -> str | None`: `ZeroShot` below, or a
`data.prompts.FewShot` with exemplars.

Tool-integrated reasoning: where the model has written a ```python block and opens ```output, generation waits, the
block runs, what it printed is inserted, and the model goes on. A block sees what the blocks before it have defined:
they are run again before it, silently, since every program of the sandbox starts from the same state and a program
that goes on between two calls would hold a process, and its limits, for as long as the model thinks.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from data import answers, prompts
from data.problems import Problem
from data.sandbox import Result, Sandbox
from data.tokenizer import Tokenizer
from generate import Sample
from reward import completion_text, printed, run_programs

OUTPUT_CHARS = 1000  # of what a program printed, the end is shown to the model
_BLOCK = re.compile(r"```python[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class ZeroShot:
    """The question alone, in a template of data.prompts."""

    format: str
    template: str = "plain"
    shots: int = 0

    @property
    def stop(self) -> tuple[str, ...]:
        return tuple(prompts.stop_strings(self.format, self.template))

    def prompt(self, problem: Problem, shots: int | None = None) -> str:
        return prompts.prompt(problem.question, self.format, self.template)

    def program(self, text: str) -> str | None:
        return prompts.program(text, self.format, self.template)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts within the context


def fit(
    tokenizer: Tokenizer, way, items: Sequence[Problem], shots: int, room: int, context: int, template: str
) -> list[tuple[list[int], int]]:
    """(ids, number of exemplars) of each item's prompt: the most exemplars, up to `shots`, that leave `room` tokens of
    the context for an answer. A question that leaves less by itself stands alone; ids are [] where it leaves nothing.

    An exemplar's length is measured once for all prompts that begin with it, so that prompts of thousands of tokens are
    not encoded again and again; the chosen prompt is then encoded whole, and shortened further if that is longer.
    """
    found: list = [None] * len(items)
    alone = prompts.encode(tokenizer, [way.prompt(item, 0) for item in items], template)
    chosen = dict.fromkeys(range(len(items)), 0)
    if shots:
        measured: dict[str, int] = {}
        for i, item in enumerate(items):
            bare = way.prompt(item, 0)
            for k in range(shots, 0, -1):
                head = way.prompt(item, k).removesuffix(bare)
                if head not in measured:
                    measured[head] = len(tokenizer.encode(head))
                if measured[head] + len(alone[i]) + room <= context:
                    chosen[i] = k
                    break
    while True:
        texts = [way.prompt(items[i], k) for i, k in chosen.items() if k]
        encoded = iter(prompts.encode(tokenizer, texts, template))
        again = {}
        for i, k in chosen.items():
            ids = next(encoded) if k else alone[i]
            if k and len(ids) + room > context:
                again[i] = k - 1
            else:
                found[i] = (ids if len(ids) < context else [], k)
        if not again:
            return found
        chosen = again


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
        self.runs: dict[tuple[int, int], list[tuple[str, Result]]] = {}  # (prompt, sample) -> (code, its result)
        self.exhausted: set[tuple[int, int]] = set()  # asked for a program beyond the limit of rounds

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
        programs = [session([c for c, r in runs if r.status in ("ok", "error")], code) for runs, code in waiting]
        results = self.sandbox.run_many(programs)
        for (runs, code), result in zip(waiting, results, strict=True):
            runs.append((code, result))
        return results


# ---------------------------------------------------------------------------------------------------------------------
# Where the answer stands


def read(
    items: Sequence[Problem],
    samples: Sequence[Sample],
    way,
    format: str,
    tokenizer: Tokenizer,
    sandbox: Sandbox | None,
    tool: Tool | None,
    places: Sequence[tuple[int, int]],
) -> list[dict]:
    """What each sample says, unjudged: {"text", "answer", "finish", "tokens"}, tokens counting the model's own; where
    programs ran "program", the status of the last one ("none": it wrote none), and its "error" if it had one; for tool
    "rounds", the number of programs. One item a sample; `places` are their (prompt, sample) in `tool`."""
    texts = [completion_text(tokenizer, sample, way.stop) for sample in samples]
    found = [
        {"text": text, "answer": None, "finish": sample.finish, "tokens": sum(sample.mask)}
        for text, sample in zip(texts, samples, strict=True)
    ]
    if format == "cot":
        for item, one in zip(items, found, strict=True):
            one["answer"] = stated(item, one["text"])
    elif format == "pot":
        for one, result in zip(found, run_programs([way.program(text) for text in texts], sandbox), strict=True):
            one["answer"] = printed(result)
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
            one["answer"] = stated(item, _BLOCK.sub("\n", final))
            if one["answer"] is None and len(runs) < tool.rounds and (code := blocks(final)):
                late.append((runs, code))
        tool.run(late)
        for one, place in zip(found, places, strict=True):
            runs = tool.runs[place]
            if one["answer"] is None and runs:
                one["answer"] = printed(runs[-1][1])
            note_program(one, runs[-1][1] if runs else None)
            one["rounds"] = len(runs)
    return found


def note_program(one: dict, result: Result | None) -> None:
    one["program"] = result.status if result else "none"
    if result and result.error:
        one["error"] = result.error


def stated(item: Problem, text: str) -> str | None:
    """The answer that a text states, or None. That to a "text" problem is the line after "the answer is"."""
    if item.kind == "text" and (said := re.findall(r"(?i)\banswer is:?[^\S\n]*(.*)", text)):
        return said[-1].strip().removesuffix(".").strip() or None
    return answers.extract(text)


# ---------------------------------------------------------------------------------------------------------------------
# Whether it is right


def judge(item: Problem, one: dict) -> None:
    """Add to an attempt: "right" by the relaxed rules with "reason", "strict" by the strict ones with "strict_reason"
    (reasons of data.answers.Verdict). The answer to a choice becomes its letter."""
    letter = one["answer"]
    if item.kind == "choice" and letter is not None:
        letter = chosen(letter, item.choices)
    verdict = _verdicts(item.kind, item.answer, one["answer"], letter)
    one["answer"] = letter
    one["right"], one["reason"], one["strict"], one["strict_reason"] = verdict


@functools.lru_cache(65_536)
def _verdicts(kind: str, gold: str, said: str | None, letter: str | None) -> tuple[bool, str, bool, str]:
    if said is None:
        return False, "no_answer", False, "no_answer"
    if kind == "answer":
        relaxed, strict = answers.compare(gold, said), answers.compare(gold, said, strict=True)
        return relaxed.equal, relaxed.reason, strict.equal, strict.reason
    if kind == "choice":
        relaxed, strict = letter == gold, re.sub(r"[()\s.]", "", said) == gold
    else:
        relaxed, strict = plain_text(gold) == plain_text(said), gold.strip() == said.strip()
    reasons = ["equal" if equal else "value" for equal in (relaxed, strict)]
    return relaxed, reasons[0], strict, "format" if relaxed and not strict else reasons[1]


def same(kind: str, a: str, b: str) -> bool:
    """Whether two samples of a problem of this kind gave the same answer."""
    return answers.compare(a, b).equal if kind == "answer" else plain_text(a) == plain_text(b)


def plain_text(text: str) -> str:
    """A short text without case, brackets around the whole, quotes, full stop and doubled spaces."""
    text = re.sub(r"\s+", " ", text.strip().strip(".\"'`*").strip()).casefold()
    return text[1:-1] if re.fullmatch(r"\([^()]*\)", text) else text


@functools.lru_cache(65_536)
def chosen(said: str, choices: tuple[str, ...]) -> str:
    """The letter that an answer means: the one it gives, or that of the only option whose value it gives; otherwise
    the answer as it is."""
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    for same_as in (letters, choices):
        if len(found := [i for i, option in enumerate(same_as) if answers.compare(option, said).equal]) == 1:
            return letters[found[0]]
    return said
