"""What the tests of the trainers share: a tiny world to train in, and programs that run trainers in other processes.

python tests/training.py kill TRAINER WORLD OUT POINTS     a run killed at several points, and one that is not
torchrun tests/training.py together WORLD OUT              every trainer, and its gradients, on two processes
"""

import contextlib
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from runtime.options import parse

import pytest
import torch

import train_dpo
import train_grpo
import train_ppo
import train_pretrain
import train_reward
import train_sft
from batch import pack_rollouts, token_logprobs
from data import prompts
from data.io import write_jsonl
from data.problems.problem import Problem
from data.prompts import encode, problem_prompt
from data.sandbox.sandbox import Result
from data.shards import windows, write_shards
from data.tokenizer import Tokenizer
from data.train_tokenizer import train
from data.world import synthetic
from generate import Sample, Sampling
from model import ModelConfig, Transformer
from rollout import Rollout, Sampler, judge, label_steps, sample_rollouts, save_rollouts
from runtime.distributed import World, seeded, setup, shard, whole_tensor
from runtime.hf import from_pretrained, save_pretrained
from runtime.optim import peak_flops
from runtime.run import command as run_program

ROOT = Path(__file__).parents[1]
TRAINERS = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "reward": train_reward,
    "grpo": train_grpo,
    "iterative": train_grpo,
    "dpo": train_dpo,
    "ppo": train_ppo,
}

# ---------------------------------------------------------------------------------------------------------------------
# The world: questions of uneven length with three answers each, one of them right, so that a policy that has learned
# them all is right a third of the time.

QUESTIONS = [
    "Ann?",
    "What does Bob say?",
    "Cid and Dora meet. What is it?",
    "Eve?",
    "Who knows what Fay has?",
    "Guy?",
]
COT = {
    "1": "The answer is 1.",
    "2": "Well, the answer is 2.",
    "3": "1 + 2 = 3.\nSo the answer is 3.",
}
POT = {"1": "print(1)", "2": "a = 2\nprint(a)", "3": "a = 1\nb = 2\nprint(a + b)"}
PROBLEMS = [Problem(f"p{i}", question, str(i % 3 + 1)) for i, question in enumerate(QUESTIONS)]


def build(root: Path) -> SimpleNamespace:
    """Write tokenizer, data, a model with random weights (base/) and one that knows the answers (model/) to `root`."""
    rows = [
        {"question": question, "response": response, "format": format, "lang": "en"}
        for question in QUESTIONS
        for format, responses in (("cot", COT), ("pot", POT))
        for response in responses.values()
    ]
    write_jsonl(root / "sft.jsonl", rows)
    write_jsonl(
        root / "problems.jsonl",
        [{"id": p.id, "question": p.question, "answer": p.answer} for p in PROBLEMS],
    )
    kinds = {"a": "math", "b": "code", "valid": "math"}
    documents = {
        name: [
            synthetic.document(i, kind, "valid" if name == "valid" else "train") for i in range(80)
        ]
        for name, kind in kinds.items()
    }
    lines = [prompts.prompt(row["question"], row["format"]) + row["response"] for row in rows]
    tokenizer = train([*lines, *itertools.chain(*documents.values())], 400, workers=1)
    for name, texts in documents.items():
        ids = tokenizer.encode_batch([text[:30] for text in texts])  # short: windows hold several
        write_shards(ids, root / name, tokenizer.hash, name, tokenizer.vocab_size, tokenizer.eos_id)
    eos = tokenizer.eos_id
    shape = ModelConfig(
        tokenizer.vocab_size,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn=64,
        context=96,
        eos_id=eos,
    )
    save_pretrained(Transformer(shape, seed=1), root / "base")
    tokenizer.save(root / "base")
    run(
        "sft",
        root,
        root / "taught",
        init=root / "base",
        steps=90,
        lr=1e-2,
        save_every=100,
        valid="",
    )
    (root / "taught" / "model").rename(root / "model")
    sampling = Sampling(6, max_new_tokens=20, seed=2)
    sampler = Sampler(from_pretrained(root / "model"), tokenizer, max_rows=36)
    samples = sample_rollouts(sampler, PROBLEMS, ["cot"], sampling)
    judge(sampler, samples)
    label_steps(sampler, samples, sampling)
    save_rollouts(root / "samples.jsonl", samples, tokenizer)
    run("reward", root, root / "judge", save_every=100, valid="", kind="process", steps=20, lr=1e-2)
    (root / "judge" / "model").rename(root / "process")
    (root / "reward.toml").write_text(
        "questions = 2\nsteps = 3\nlr = 1e-3\nreplay = 0.25\nsave_every = 2\n"
        f'history = ["{root}/samples.jsonl"]\n'
    )
    return SimpleNamespace(root=root, tokenizer=tokenizer)


class Calculator:
    """Stands in for the sandbox, which takes a second to start: knows the programs of the world, and no others."""

    answers = {program: answer for answer, program in POT.items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, code):
        result = Future()
        result.set_result(
            Result("ok", self.answers[code], "")
            if code in self.answers
            else Result("error", "", "")
        )
        return result

    def run_many(self, codes):
        return [self.start(code).result() for code in codes]


def options(trainer: str, root: Path, run: Path, /, **changes) -> list[str]:
    """The command line of a short run that has everything in it: warm-up, validation, checkpoints between, two epochs.

    GRPO's has five outer iterations of two steps, two updates on each batch, both formats, and groups cut into several
    micro-batches. "iterative" is GRPO with process supervision by a reward model that learns on between iterations.
    """
    common = dict(to=run, device="cpu", save_every=4, steps=10, valid_every=3)
    own = {
        "pretrain": dict(
            init=root / "base",
            data=f"a={root}/a,b={root}/b",
            weights="a=0.7,b=0.3",
            valid=f"v={root}/valid",
            valid_windows=5,
            context=32,
            batch=6,
            micro_batch=4,
            lr=3e-3,
            warmup=3,
        ),
        "sft": dict(
            init=root / "base",
            data=root / "sft.jsonl",
            valid=root / "sft.jsonl",
            context=72,
            batch=5,
            lr=3e-3,
            warmup=2,
            decay=0.3,
            micro_tokens=100,
        ),
        "reward": dict(
            init=root / "base",
            data=root / "samples.jsonl",
            valid=root / "samples.jsonl",
            context=64,
            questions=4,
            kind="process",
            lr=3e-3,
            warmup=2,
            decay=0.3,
            micro_tokens=90,
            history=root / "samples.jsonl",
            replay=0.25,
        ),
        "grpo": dict(
            init=root / "model",
            problems=root / "problems.jsonl",
            valid=root / "problems.jsonl",
            iterations=5,
            steps=2,
            save_every=5,
            mu=2,
            lr=3e-3,
            warmup=2,
            formats="cot,pot",
            questions=4,
            samples=4,
            max_new_tokens=16,
            max_rows=6,
            micro_tokens=90,
            temperature=0.9,
        ),
        "dpo": dict(
            init=root / "model",
            data=root / "samples.jsonl",
            valid=root / "samples.jsonl",
            context=96,
            batch=5,
            lr=3e-4,
            warmup=2,
            decay=0.3,
            micro_tokens=110,
        ),
        "ppo": dict(
            init=root / "model",
            problems=root / "problems.jsonl",
            valid=root / "problems.jsonl",
            valid_limit=4,
            mu=2,
            lr=3e-3,
            value_lr=1e-2,
            warmup=2,
            formats="cot,pot",
            questions=4,
            samples=2,
            max_new_tokens=14,
            max_rows=6,
            micro_tokens=60,
            temperature=0.9,
        ),
    }
    own["iterative"] = own["grpo"] | dict(
        iterations=3,
        formats="cot",
        mu=1,
        reward="process_model",
        supervision="process",
        reward_model=root / "process",
        reward_questions=3,
        reward_config=root / "reward.toml",
    )
    chosen = {**common, **own[trainer], **changes}
    return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]


def run(trainer: str, world: Path, to: Path, **changes) -> Path:
    """Train in this process; returns the run directory."""
    module = TRAINERS[trainer]
    with in_tests(), contextlib.redirect_stdout(None):
        module.main(parse(module.Config, options(trainer, world, to, **changes)))
    return Path(to)


@contextlib.contextmanager
def in_tests():
    """Training as fast as tests want it, on one thread: how sums are split over threads decides their last bits."""
    threads, sandbox, fsync = torch.get_num_threads(), train_grpo.Sandbox, os.fsync
    torch.set_num_threads(1)
    train_grpo.Sandbox = train_ppo.Sandbox = Calculator
    os.fsync = lambda file: (
        None
    )  # it guards against power cuts alone, and takes a second on a busy disk
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        train_grpo.Sandbox = train_ppo.Sandbox = sandbox
        os.fsync = fsync


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return from_pretrained(directory).state_dict()


def gradients(model) -> dict[str, torch.Tensor]:
    """The gradients, whole, which are then cleared."""
    found = {
        name: whole_tensor(p.grad).clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    model.zero_grad()
    return found


def assert_close(found: dict, expected: dict, relative: float = 1e-5) -> None:
    """Tensors by name, equal to `relative` of the largest element of each."""
    assert found.keys() == expected.keys() and expected
    for name, tensor in expected.items():
        assert tensor.abs().max() > 0, name
        error = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert error <= relative, f"{name}: off by {error:.2g}"


def assert_same_start(found: list[dict], expected: list[dict], later: tuple[str, ...] = ()) -> None:
    """Metrics of two runs that may differ in rounding: alike until the first update.

    Rounding grows with every update, so that later steps only have the same keys, and the same
    values of what does not depend on the weights. later: metrics of later updates of a step.
    """
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        fixed = {"step", "lr", "value_lr", "tokens", "sources", "examples"}
        names = row.keys() - set(later) if row["step"] <= 1 else row.keys() & fixed
        for name in names - {"sources"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
        assert row.get("sources") == other.get("sources")


def scoring(directory: Path, kind: str = "value", seed: int = 0):
    """The model of a directory with a score head of random weights: a new one's would say 0 whatever it reads."""
    model = from_pretrained(directory, score=kind)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(seed))
        model.score.bias.fill_(0.3)
    return model


def logprobs(
    model, prompt: list[int], completion: list[int], temperature: float = 1.0
) -> torch.Tensor:
    """The definition, for one sequence alone: log softmax(logits / temperature) at each id of the completion, [n]."""
    logits = model.logits(model(torch.tensor(prompt + completion[:-1])))[len(prompt) - 1 :]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def made_up_rollouts(tokenizer: Tokenizer, seed: int = 0, formats=("cot",)) -> list:
    """Three questions with four completions of 1 to 9 random ids; some ids a tool's, one completion all a tool's."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for item in PROBLEMS[:3]:
        (prompt,) = encode(tokenizer, [problem_prompt(item, formats[0])])
        samples = []
        for g in range(4):
            n = 1 if g == 1 else int(torch.randint(3, 10, (), generator=draw))
            ids = torch.randint(0, 256, (n,), generator=draw).tolist()
            mask = [not (g == 2 and 1 <= t <= 2) for t in range(n)]
            samples.append(Sample(ids, [0.0] * n, mask, "eos"))
        one = Rollout(item, formats[0], prompt, samples)
        one.verdicts, one.rewards, one.advantages = [0.0] * 4, [0.0] * 4, [1.2, -0.7, -0.9, 0.4]
        found.append(one)
    found[1].samples[3].mask = [False] * len(found[1].samples[3].ids)
    return found


def micro_batches(rollouts: list, config, reference, world: World, shared: bool = True) -> list:
    """What train_grpo or train_ppo makes of rollouts before it learns from them."""
    batches = pack_rollouts(rollouts, config.micro_tokens, world, shared)
    trainer = train_ppo if isinstance(config, train_ppo.Config) else train_grpo
    trainer.set_weights(batches, rollouts, config)
    if reference is not None:
        for micro in batches:
            with torch.no_grad():
                micro.ref_logp, _ = token_logprobs(reference, micro, config.temperature)
    return batches


# ---------------------------------------------------------------------------------------------------------------------
# A run that is killed


def die(target: str, call: int, moment: str) -> None:
    """Make this process end in SIGKILL before or after the `call`-th call of `target` ("module.name.name")."""
    path = target.split(".")
    owner = importlib.import_module(path[0])
    for name in path[1:-1]:
        owner = getattr(owner, name)
    original, calls = getattr(owner, path[-1]), itertools.count(1)

    def replaced(*args, **kwargs):
        last = next(calls) == call
        if last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, path[-1], replaced)


def in_fork(function) -> int:
    """The status of a copy of this process that runs `function`. Copies share nothing but what was imported."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_main(trainer: str, world: str, out: str, points: str) -> None:
    """OUT/whole: a run that nothing happens to. OUT/killed: the same command, killed at each point in turn and run to
    its end. Writes the exit statuses, and the steps that GRPO or PPO sampled, run by run, to OUT/log.json."""
    sampled = Path(out) / "sampled"
    import torch.distributed.checkpoint.state_dict  # noqa: F401  (what copies share need not be loaded by each)

    peak_flops(torch.device("cpu"))

    def one(to: str, point=None) -> int:
        def body():
            def noted(*key):
                if "rollout" in key:  # (seed, "rollout", step): the step is about to be sampled
                    with open(sampled, "a") as file:
                        file.write(f"{key[-1]} ")
                return seeded(*key)

            train_grpo.seeded = train_ppo.seeded = noted
            if point:
                die(*point)
            run(trainer, Path(world), Path(out) / to)

        sampled.write_text("")
        return in_fork(body)

    log = []
    for to, point in [
        ("whole", None),
        *(("killed", point) for point in [*json.loads(points), None]),
    ]:
        status = one(to, point)
        left = sorted(path.name for path in (Path(out) / to).glob("step_*"))
        log.append(
            {
                "run": to,
                "status": status,
                "sampled": sampled.read_text().split(),
                "checkpoints": left,
            }
        )
    (Path(out) / "log.json").write_text(json.dumps(log))


def killed(trainer: str, world: Path, out: Path, points: list) -> list[dict]:
    """`kill_main` in a process of its own; returns the log of the killed run's parts."""
    out.mkdir()
    finished = start(["kill", trainer, str(world), str(out), json.dumps(points)])
    assert finished.returncode == 0, finished.stderr
    log = json.loads((out / "log.json").read_text())
    assert log[0]["status"] == 0 and [part["status"] for part in log[1:]] == [-9] * len(points) + [
        0
    ], finished.stderr
    return log[1:]


def start(
    arguments: list[str], processes: int = 1, program: Path = Path(__file__), timeout: int = 600
):
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        if processes > 1
        else []
    )
    command = [sys.executable, *launcher, str(program), *arguments]
    path = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests")]
    )  # a program in tests/tools imports training
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=timeout
    )


def assert_same_run(first: Path, second: Path) -> None:
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    names = sorted(path.name for path in (first / "model").iterdir())
    assert (
        names == sorted(path.name for path in (second / "model").iterdir())
        and "model.safetensors" in names
    )
    for name in names:
        assert (first / "model" / name).read_bytes() == (second / "model" / name).read_bytes(), name
    assert not list(second.glob(".*")), "something half-written is left"


# ---------------------------------------------------------------------------------------------------------------------
# Two processes


def all_gradients(root: Path, world: World, micro: int = 1) -> dict[str, dict]:
    """The gradients of the trainers on fixed data, the micro-batches `micro` times smaller; and their losses."""
    tokenizer = Tokenizer.load(root / "base")
    model = from_pretrained(root / "base")
    reference = from_pretrained(root / "model")
    model, reference = shard(model, world), shard(reference, world)
    found = {}
    rows = windows(root / "a", 32, 7)  # 7 rows: one process more than the other
    loss = train_pretrain.batch_loss(model, rows, tokenizer.eos_id, 8 // micro, world)
    found["pretrain"] = gradients(model) | {"loss": torch.tensor(loss)}
    examples = train_sft.load_examples([f"{root}/sft.jsonl"], tokenizer, "plain", 96)[0][:7]
    loss = train_sft.batch_loss(model, examples, 320 // micro, world)
    found["sft"] = gradients(model) | {"loss": torch.tensor(loss)}
    config = train_reward.Config(kind="process", init="base", context=96, micro_tokens=400 // micro)
    groups, _ = train_reward.load_labeled(f"{root}/samples.jsonl", config, tokenizer)
    scorer = shard(from_pretrained(root / "process", score="process"), world)
    found["reward"] = train_reward.batch_loss(scorer, groups, config, world)
    found["reward"] = gradients(scorer) | {
        name: torch.tensor(value) for name, value in found["reward"].items()
    }
    rollouts = made_up_rollouts(tokenizer)
    config = train_grpo.Config(beta=0.1, temperature=0.7, micro_tokens=400 // micro)
    batches = micro_batches(rollouts, config, reference, world)
    sums = train_grpo.grpo_gradient(model, batches, config)
    sums = {name: world.all_sum(value) for name, value in sums.items() if name != "clip"}
    found["grpo"] = gradients(model) | sums
    config = train_dpo.Config(init=str(root / "model"), context=96, micro_tokens=120 // micro)
    pairs = train_dpo.load_pairs([f"{root}/samples.jsonl"], config, tokenizer)[0][
        :5
    ]  # two micro-batches and one
    measures = train_dpo.batch_loss(model, reference, pairs, config, world)
    found["dpo"] = gradients(model) | {
        name: torch.tensor(value) for name, value in measures.items()
    }
    value = shard(scoring(root / "model"), world)
    config = train_ppo.Config(beta=0.1, temperature=0.7, micro_tokens=400 // micro, clip_value=0.5)
    train_ppo.assess(config, rollouts, reference, value, world)
    estimates = train_ppo.estimate(config, rollouts)
    batches = micro_batches(rollouts, config, None, world)
    train_ppo.policy_gradient(model, batches, config)
    found["ppo"] = gradients(model) | {
        name: torch.tensor(number) for name, number in estimates.items()
    }
    loss = train_ppo.value_gradient(value, batches, rollouts, config)["value_loss"]
    found["ppo_value"] = gradients(value) | {"loss": world.all_sum(loss)}
    lone = rollouts[:1]  # one micro-batch: the second process runs along
    train_ppo.assess(config, lone, reference, value, world)
    train_ppo.estimate(config, lone)
    batches = micro_batches(lone, config, None, world)
    train_ppo.value_gradient(value, batches, lone, config)
    found["ppo_lone"] = gradients(value)
    return found


def together_main(world_directory: str, out: str) -> None:
    world = setup("cpu")
    for trainer in TRAINERS:
        run(trainer, Path(world_directory), Path(out) / trainer)
    found = all_gradients(Path(world_directory), world)
    if world.is_main:
        torch.save(found, Path(out) / "gradients.pt")
    torch.distributed.destroy_process_group()
    os._exit(
        0
    )  # at a usual exit a starved thread of gloo's may find the interpreter gone, and abort


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def refusal(trainer: str, arguments: list[str], monkeypatch, capsys) -> str:
    """What a command with bad input says, in this process: one line after "error: ", with exit code 2."""
    module = TRAINERS[trainer]
    monkeypatch.setattr(sys, "argv", [f"train_{trainer}.py", *arguments])
    code = 0
    with in_tests():
        try:
            run_program(module.main, module.Config)
        except SystemExit as stop:
            code = stop.code
    return one_error(code, capsys.readouterr().err)


def without_news(text: str) -> str:
    """What was printed, without the line that says which accelerators a run uses."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("accelerators: "))


def one_error(code: int, stderr: str) -> str:
    assert code == 2, stderr
    match = re.fullmatch(r"error: (.+)\n", without_news(stderr))
    assert match, stderr
    return match[1]


if __name__ == "__main__":
    {"kill": kill_main, "together": together_main}[sys.argv[1]](*sys.argv[2:])
