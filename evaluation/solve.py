"""Solving problems with a model: prompts that fit the context, samples, answers and verdicts.

The formats of a solution (sections 2.3 and 3.1 of the paper): "cot", a chain of thought; "pot", a
program that prints the answer; "tool", text and programs in turn; "code" and "proof", for problems
that ask for a program or a proof.

Tool-integrated reasoning: when the model has written a ```python block and opens ```output,
generation pauses, the block runs, its output is inserted, and the model continues. A block sees
what earlier blocks have defined: they run again before it, silently. (The sandbox starts every
program from the same state. A program that stays alive between two calls would hold a process for
as long as the model thinks.)
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data import prompts
from data.problems import benchmarks
from data.problems.problem import Problem
from data.sandbox.prover import Prover
from data.sandbox.sandbox import Result, Sandbox
from data.tokenizer import Tokenizer
from evaluation import judge
from evaluation.few_shot import FewShot
from generate import Sample, Sampling, completion_text, generate
from model import Transformer
from reward import printed

OUTPUT_CHARS = 1000  # the model sees at most this many characters of an output, from its end
_BLOCK = re.compile(r"```python[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def zero_shot(format: str, template: str = "plain") -> FewShot:
    """The question alone, in a template of data.prompts."""
    return FewShot.ours(None, format, 0, template)


@dataclass
class Solver:
    """A model with everything that solving problems needs. Programs need a sandbox, proofs a
    prover.
    """

    model: Transformer
    tokenizer: Tokenizer
    template: str = "plain"
    sandbox: Sandbox | None = None
    max_rows: int = 256  # completions decoded at once
    rounds: int = 4  # programs that a tool-integrated solution may run
    prover: Prover | None = None
    prover_seconds: float = 600.0

    def solve(
        self,
        problems: Sequence[Problem],
        format: str,
        sampling: Sampling,
        few_shot: FewShot | None = None,
        keys: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[dict]:
        """Solve every problem `sampling.samples` times. Returns a record for each problem.

        few_shot: makes the prompts, with all its exemplars or as many as the context has room for.
        Without it the question stands alone.
        keys: the random stream of each problem, its index by default. With the index in a whole
        benchmark, the samples do not depend on how the problems are divided.
        progress: called with the number of samples that have finished.

        A record has id, question, answer, kind, section (the benchmark's subject or task), shots
        (exemplars in the prompt), prompt_tokens, and attempts, one for each sample:

        text, tokens         the completion, and how many of its tokens the model wrote
        answer               str or None
        finish               "eos", "stop", "length", "prompt" (the prompt left no room, so nothing
                             was sampled) or "rounds" (it wanted more programs than `rounds`)
        right, reason, strict, strict_reason      see `judge.judge`
        program, error       pot, tool and code: status of the last program, last line of its error
        rounds               tool: programs that ran
        proof                see `judge.read_proofs`
        """
        few_shot = few_shot or zero_shot(format, self.template)
        room = min(sampling.max_new_tokens, self.model.config.context // 4)
        fitted = self.fit(few_shot, problems, room)
        index = [i for i, (ids, _) in enumerate(fitted) if ids]  # the problems whose prompts fit
        keys = keys or range(len(problems))

        # sample
        tool = None
        if format == "tool":
            tool = Tool(self.tokenizer, self.sandbox, self.rounds, sampling.samples)
        groups = generate(
            self.model,
            self.tokenizer,
            [fitted[i][0] for i in index],
            replace(sampling, stop=tuple(few_shot.stop), max_rows=self.max_rows),
            keys=[keys[i] for i in index],
            on_stop=tool,
            on_sample=progress and (lambda *sample: progress(1)),
        )

        # read the answers of all samples together, so that programs run side by side
        asked, attempts = [], []
        for i, group in zip(index, groups, strict=True):
            asked += [problems[i]] * len(group)
            attempts += [self.attempt(sample, few_shot) for sample in group]
        self.read(asked, attempts, format, few_shot, tool)

        # records, with an empty attempt where the prompt did not fit
        K, remaining, records = sampling.samples, iter(attempts), []
        for problem, (ids, shots) in zip(problems, fitted, strict=True):
            if ids:
                own = [next(remaining) for _ in range(K)]
            else:
                own = [self.no_attempt(format) for _ in range(K)]
                if progress:
                    progress(K)
            for attempt in own:
                judge.judge(problem, attempt)
            records.append(
                {
                    "id": problem.id,
                    "question": problem.question,
                    "answer": problem.answer,
                    "kind": problem.kind,
                    "section": benchmarks.section(problem),
                    "shots": shots,
                    "prompt_tokens": len(ids),
                    "attempts": own,
                }
            )
        return records

    def attempt(self, sample: Sample, few_shot: FewShot) -> dict:
        """A sample as the beginning of an attempt."""
        text = completion_text(self.tokenizer, sample, few_shot.stop)
        tokens = sum(sample.mask)
        return {
            "text": text,
            "answer": None,
            "finish": sample.finish,
            "tokens": tokens,
        }

    def no_attempt(self, format: str) -> dict:
        """The attempt of a problem whose prompt does not fit."""
        attempt = {
            "text": "",
            "answer": None,
            "finish": "prompt",
            "tokens": 0,
        }
        if format == "proof":
            attempt["proof"] = "failed" if self.prover else "no prover"
        return attempt

    def read(
        self,
        problems: Sequence[Problem],
        attempts: list[dict],
        format: str,
        few_shot: FewShot,
        tool: "Tool | None",
    ) -> None:
        """Add each attempt's answer. `problems` has the problem of each attempt."""
        if format == "cot":
            judge.read_chains(problems, attempts)
        elif format == "pot":
            judge.read_programs(problems, attempts, few_shot.program, self.sandbox)
        elif format == "tool":
            tool.read(problems, attempts)
        elif format == "code":
            judge.read_code(problems, attempts, self.sandbox)
        elif format == "proof":
            judge.read_proofs(problems, attempts, self.prover, self.prover_seconds)

    def fit(
        self, few_shot: FewShot, problems: Sequence[Problem], room: int
    ) -> list[tuple[list[int], int]]:
        """(ids, number of exemplars) of the prompt of each problem.

        Takes the most exemplars that leave `room` tokens of the context for an answer. A question
        that is too long for that stands alone; ids are [] where even it fills the context.

        The length of a set of exemplars is measured once for all prompts that begin with it, so
        that long prompts are not encoded again and again. The chosen prompt is then encoded as a
        whole and shortened if it is too long.
        """
        context = self.model.config.context
        if few_shot.one_text:
            texts = [few_shot.prompt(problem) for problem in problems]
            encoded = prompts.encode(self.tokenizer, texts, self.template)
            short = [ids if len(ids) < context else [] for ids in encoded]
            return [(ids, few_shot.shots) for ids in short]

        # choose the number of exemplars from the lengths of their parts
        shots = dict.fromkeys(range(len(problems)), 0)
        if few_shot.shots:
            questions = [few_shot.question(problem) for problem in problems]
            encoded = prompts.encode(self.tokenizer, questions, self.template)
            measured: dict[str, int] = {}
            for i, question in enumerate(questions):
                for k in range(few_shot.shots, 0, -1):
                    head = few_shot.prompt(problems[i], k).removesuffix(question)
                    if head not in measured:
                        measured[head] = len(self.tokenizer.encode(head))
                    if measured[head] + len(encoded[i]) + room <= context:
                        shots[i] = k
                        break

        # encode the whole prompts, with one exemplar less where one is too long after all
        fitted = [([], 0)] * len(problems)
        while shots:
            texts = [few_shot.prompt(problems[i], k) for i, k in shots.items()]
            encoded = prompts.encode(self.tokenizer, texts, self.template)
            too_long = {}
            for (i, k), ids in zip(shots.items(), encoded, strict=True):
                if k and len(ids) + room > context:
                    too_long[i] = k - 1
                else:
                    fitted[i] = ids if len(ids) < context else [], k
            shots = too_long
        return fitted


# --------------------------------------------------------------------------------------------------
# Tool-integrated reasoning


def blocks(text: str) -> str:
    """The code of all ```python blocks of a text, joined; "" if there is none."""
    found = [block.strip("\n") for block in _BLOCK.findall(text)]
    return "\n".join(found).strip()


def session(earlier: Sequence[str], code: str) -> str:
    """A program that runs `code` in the state that the earlier blocks leave, and prints only what
    `code` prints.
    """
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
    """What the model sees of a run: the end of what was printed, and the last line of an error.

    Fences are replaced, because they would end the ```output block.
    """
    shown = result.stdout.rstrip()
    if result.status != "ok":
        shown += f"\n{result.error}"
    return shown.strip("\n")[-OUTPUT_CHARS:].replace("```", "'''")


class Tool:
    """generate()'s `on_stop` hook: runs together the blocks of all samples that wait in one
    decoding step.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sandbox: Sandbox,
        rounds: int,
        samples: int = 1,
    ):
        self.tokenizer, self.sandbox = tokenizer, sandbox
        self.rounds, self.group_size = rounds, samples
        # (prompt, sample) -> the (code, result) of each run
        self.runs: dict[tuple[int, int], list[tuple[str, Result]]] = {}
        self.exhausted: set[tuple[int, int]] = (
            set()
        )  # samples that wanted one more run than allowed

    def __call__(self, stopped: list[tuple[int, int, list[int]]]) -> list[list[int] | None]:
        """The ids to insert into each stopped sample (prompt, sample, ids); None ends the sample."""
        inserted: list[list[int] | None] = [None] * len(stopped)
        waiting = []
        for i, (prompt, sample, ids) in enumerate(stopped):
            before, fence, after = self.tokenizer.decode(ids).rpartition("```output")
            code = ""
            if fence and not after.strip():
                code = blocks(before.rpartition("```output")[2])
            if not code:  # another stop string, or nothing to run
                continue
            runs = self.runs.setdefault((prompt, sample), [])
            if len(runs) == self.rounds:
                self.exhausted.add((prompt, sample))
                continue
            waiting.append((i, runs, code, after))
        results = self.run([(runs, code) for _, runs, code, _ in waiting])
        for (i, _, _, after), result in zip(waiting, results, strict=True):
            newline = "" if "\n" in after else "\n"
            inserted[i] = self.tokenizer.encode(f"{newline}{output_text(result)}\n```\n")
        return inserted

    def run(self, waiting: list[tuple[list, str]]) -> list[Result]:
        """Run each code after its earlier blocks and append it to them. Blocks that timed out are
        left out.
        """
        programs = []
        for runs, code in waiting:
            earlier = [c for c, result in runs if result.status in ("ok", "error")]
            programs.append(session(earlier, code))
        results = self.sandbox.run_many(programs)
        for (runs, code), result in zip(waiting, results, strict=True):
            runs.append((code, result))
        return results

    def read(self, problems: Sequence[Problem], attempts: list[dict]) -> None:
        """Add "answer", "program", "error" and "rounds" to the attempts, group after group.

        The answer is the one that the text after the last output states, else what the last program
        printed.
        """
        count = range(len(attempts))
        samples = [divmod(i, self.group_size) for i in count]  # (prompt, sample)
        late = []  # a block at the end whose output the model did not wait for
        for problem, attempt, sample in zip(problems, attempts, samples, strict=True):
            if sample in self.exhausted:
                attempt["finish"] = "rounds"
            final = attempt["text"].rpartition("```output")[2]
            runs = self.runs.setdefault(sample, [])
            if runs and "```output" in attempt["text"]:
                final = final.partition("\n```\n")[2]
            attempt |= judge.stated_answer(problem, _BLOCK.sub("\n", final))
            code = blocks(final)
            if code and attempt["answer"] is None and len(runs) < self.rounds:
                late.append((runs, code))
        self.run(late)
        for problem, attempt, sample in zip(problems, attempts, samples, strict=True):
            runs = self.runs[sample]
            last = runs[-1][1] if runs else None  # its result
            if attempt["answer"] is None:
                attempt |= judge.normalize(problem, printed(last))
            judge.add_status(attempt, last)
            attempt["rounds"] = len(runs)
