"""Figure 3: the same small model trained on several corpora for the same tokens, their curves side by side (2.2).

    python -m experiments.figure3 --corpora crawl=DIR,mined=DIR --valid math=FILE.jsonl [--problems FILE] [--to DIR]

A corpus is a JSONL file of pages, or a folder of them. All are cut by one tokenizer, learned from all of them together
unless --tokenizer or --init names one, and each seed trains a model on each corpus with the same initial weights, steps
and schedule. A corpus smaller than the tokens of training is repeated: the table says how often. Prints and writes the
losses on held-out text at the end, mean and interval over seeds, and how far each corpus is from the first named, seed
by seed; with --problems also the accuracy of the final models, by eval.py, which asks without examples (the paper gives
few-shot ones), so that a corpus in which questions look like its prompts has the advantage. Draws the losses.

What the held-out text is decides what is compared. It must be in no corpus, and no corpus may have had a hand in
choosing it: pages that a classifier picked would favour what the same classifier picked. For the built-in web two texts
are fair, and see different things:

    python -m data.world.synthetic --to DIR --documents 4000         DIR/documents/valid_math.jsonl
    python -m data.world.web --to DIR --seed 1 --jsonl     the pages that DIR/truth.jsonl says are mathematics

The first has solved problems of the valid split, which no page shows, and the layout of no site: like the paper's
benchmarks, it asks what a corpus teaches about mathematics. The second has every style of page in its true proportion:
it shows what a corpus that lacks some of them has lost. Its word problems are of the train split and its set phrases
those of all webs, so it is the easier to learn by heart.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

import train_pretrain
from data.io import InputError, atomic_write, jsonl_files
from data.problems import readers
from data.shards import Shards, encode_documents, texts, write_shards
from data.tokenizer import Tokenizer, train
from experiments.common import (
    ROOT,
    curve,
    flags,
    mean_interval,
    parallel,
    percent,
    picture,
    run,
    save,
)
from runtime.options import option, parse
from runtime.run import command


@dataclass
class Config:
    corpora: dict[str, str] = option(
        {}, "what is compared: JSONL files of {text}, or folders of them, by name"
    )
    valid: dict[str, str] = option(
        {}, "held-out text of the curves, likewise; see above for what is fair"
    )
    problems: list[str] = option(
        [], "problem files that the final models are asked; none: losses alone"
    )
    to: str = option(
        "runs/figures", "directory of the shards, the runs, the table and the pictures"
    )
    # the model and its training
    training: str = option(
        "configs/demo/pretrain.toml", "configuration of train_pretrain.py: rate, batch, context ..."
    )
    size: str = option("1m", "size preset of the model")
    init: str = option("", "model to continue from instead, as in the paper; its tokenizer is used")
    tokenizer: str = option(
        "", "tokenizer directory; none: one is learned from all corpora together"
    )
    vocab_size: int = option(2048, "tokens of that one")
    steps: int = option(200, "optimizer steps on each corpus")
    seeds: int = option(3, "models trained on each corpus")
    jobs: int = option(2, "runs at the same time, each with its share of the processors")
    # evaluation
    points: int = option(10, "points of a curve")
    valid_windows: int = option(64, "sequences of each held-out text")
    formats: str = option("cot", "cot or pot")
    max_new_tokens: int = option(64, "longest answer to a problem")


def check(config: Config) -> None:
    for name in ("corpora", "valid"):
        if not getattr(config, name):
            raise InputError(f"--{name} NAME=PATH,NAME=PATH is needed")
    for name in ("steps", "seeds", "jobs", "points", "valid_windows"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: must be at least 1")
    if config.formats not in ("cot", "pot"):
        raise InputError(f"--formats {config.formats}: unknown; use cot or pot")
    for path in config.problems:
        readers.load(path)  # now, not after the training


def corpus_files(where: str, path: str) -> list[Path]:
    """The JSONL file, or those of the folder in the order of their names. `where` begins the InputError."""
    found = Path(path).resolve()
    if not found.exists():
        raise InputError(f"{where}: does not exist; give a JSONL file or a folder of them")
    return list(jsonl_files([found]))


def make_shards(
    kind: str, name: str, files: list[Path], tokenizer: Tokenizer, to: Path, context: int
) -> dict:
    """Token shards of the files in TO/KIND/NAME, unless they are there; returns their manifest. Raises InputError
    where there are fewer tokens than one window."""
    to = to / kind / name
    if not (to / "manifest.json").exists():
        documents = encode_documents(chain.from_iterable(map(texts, files)), tokenizer)
        write_shards(documents, to, tokenizer.hash, name, tokenizer.vocab_size, tokenizer.eos_id)
    manifest = Shards(to).manifest
    if manifest["tokens"] <= context:
        raise InputError(
            f"--{kind} {name}: {manifest['tokens']} tokens are fewer than one window of {context + 1}; "
            "give more text or a smaller context"
        )
    return manifest


def epochs(tokens: int, context: int, rows: int) -> float:
    """How often `rows` windows of training go through a corpus, e.g. epochs(1001, 100, 25) = 2.5: it has 10 windows."""
    return rows / ((tokens - 1) // context)


def remember(path: Path, setup: dict) -> None:
    """Write what decides the results, or compare it: what has finished is not made again, so it must be the same."""
    if not path.exists():
        with atomic_write(path) as file:
            json.dump(setup, file, indent=1)
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := [
        name for name, value in json.loads(json.dumps(setup)).items() if before.get(name) != value
    ]:
        raise InputError(
            f"{path.parent}: made with other values of {', '.join(changed)}; give another --to"
        )


def prepare(
    config: Config, to: Path, training: train_pretrain.Config
) -> tuple[str, dict[str, dict]]:
    """(the tokenizer's directory, the manifest of each corpus), with shards of all text in TO/corpora and TO/valid."""
    files: dict[str, dict[str, list[Path]]] = {"corpora": {}, "valid": {}}
    for kind, found in files.items():
        for name, path in getattr(config, kind).items():
            found[name] = corpus_files(f"--{kind} {name}={path}", path)
    setup = asdict(config) | {"training": asdict(training)}
    for kind, found in files.items():
        setup[kind] = {
            name: [[str(file), file.stat().st_size] for file in own] for name, own in found.items()
        }
    for name in ("to", "seeds", "jobs"):  # these change nothing that is there
        del setup[name]
    remember(to / "setup.json", setup)

    directory = Path(config.init or config.tokenizer or to / "tokenizer").resolve()
    if not (config.init or config.tokenizer or (directory / "tokenizer.json").exists()):
        everything = chain.from_iterable(files["corpora"].values())
        train(chain.from_iterable(map(texts, everything)), config.vocab_size).save(directory)
    tokenizer = Tokenizer.load(directory)
    manifests = {
        kind: {
            name: make_shards(kind, name, own, tokenizer, to, training.context)
            for name, own in found.items()
        }
        for kind, found in files.items()
    }
    return str(directory), manifests["corpora"]


def accuracies(config: Config, model: Path, to: Path) -> dict[str, float]:
    """The model's share of right answers, greedy, by problem file; {} without --problems."""
    if not config.problems:
        return {}
    files = ",".join(str(Path(path).resolve()) for path in config.problems)
    chosen = dict(
        model=model,
        problems=files,
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
        to=to,
    )
    run(to / "results.json", "eval.py", *flags(**chosen))
    found = json.loads((to / "results.json").read_text(encoding="utf-8"))["results"]
    return {name: metrics["accuracy"] for name, metrics in found.items()}


def losses(values) -> str:
    """Losses of several seeds as "2.312 (dev. 0.013, 2.280 - 2.344)"; the range is the 95 % interval of the mean."""
    mean, deviation, half = mean_interval(values)
    return f"{mean:.3f} (dev. {deviation:.3f}, {mean - half:.3f} - {mean + half:.3f})"


def below(first, second) -> str:
    """By how much the second losses are below the first, seed by seed, with the 95 % interval."""
    mean, _, half = mean_interval(np.subtract(first, second))
    verdict = "yes" if mean - half > 0 else "no" if mean + half < 0 else "undecided"
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}): {verdict}"


def table(rows: dict[str, dict]) -> str:
    """The results as text. rows: by corpus its documents, tokens, epochs; final losses and accuracies of the seeds."""
    first, *others = rows
    lines = [f"{'corpus':<16} {'documents':>10} {'tokens':>13} {'epochs':>7}"]
    for name, row in rows.items():
        lines.append(
            f"{name:<16} {row['documents']:>10,} {row['tokens']:>13,} {row['epochs']:>7.2f}"
        )
    for held_out, values in rows[first]["loss"].items():
        lines += ["", f"loss per token on {held_out}, {len(values)} seeds"]
        lines += [f"{name:<16} {losses(row['loss'][held_out])}" for name, row in rows.items()]
        lines += [
            f"{name} below {first}: {below(values, rows[name]['loss'][held_out])}"
            for name in others
        ]
    for exam, values in rows[first]["accuracy"].items():
        lines += ["", f"accuracy on {exam}, %, {len(values)} seeds"]
        lines += [f"{name:<16} {percent(row['accuracy'][exam])}" for name, row in rows.items()]
    return "\n".join(lines)


def main(config: Config) -> None:
    check(config)
    to = Path(config.to).resolve() / "figure3"
    training = parse(train_pretrain.Config, ["--config", str(ROOT / config.training)], partial=True)
    tokenizer, manifests = prepare(config, to, training)
    taken = config.steps * training.batch  # windows
    rows = {}
    for name, manifest in manifests.items():
        times = epochs(manifest["tokens"], training.context, taken)
        rows[name] = {
            "documents": manifest["documents"],
            "tokens": manifest["tokens"],
            "epochs": times,
        }
        rows[name] |= {"loss": {held_out: [] for held_out in config.valid}, "accuracy": {}}
        print(f"{name}: {manifest['tokens']:,} tokens, seen {times:.2f} times", flush=True)

    every = max(1, config.steps // config.points)
    common = dict(
        steps=config.steps,
        valid_every=every,
        valid_windows=config.valid_windows,
        weights="corpus=1",
        keep=1,
    )
    common["valid"] = ",".join(f"{name}={to / 'valid' / name}" for name in config.valid)
    common |= dict(init=tokenizer) if config.init else dict(size=config.size, tokenizer=tokenizer)

    def one(seed: int, name: str) -> tuple[list[dict], dict[str, float]]:
        # the source has the same name for all corpora, as the order of the data is drawn by seed and name
        here = to / "runs" / f"{name}_{seed}"
        own = dict(data=f"corpus={to / 'corpora' / name}", seed=seed, to=here)
        run(
            here / "summary.json",
            "train_pretrain.py",
            "--config",
            config.training,
            *flags(**common, **own),
        )
        lines = (here / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines], accuracies(
            config, here / "model", here / "eval"
        )

    runs = [
        (seed, name) for seed in range(config.seeds) for name in rows
    ]  # a stopped figure has whole seeds
    curves: dict[str, dict] = {held_out: {} for held_out in config.valid}
    for (_, name), (metrics, exams) in zip(
        runs, parallel(config, [partial(one, *r) for r in runs]), strict=True
    ):
        for held_out in config.valid:
            steps, values = curve(metrics, f"valid_loss/{held_out}")
            tokens = [step * training.batch * training.context for step in steps]
            curves[held_out].setdefault(name, (tokens, []))[1].append(values)
            rows[name]["loss"][held_out].append(values[-1])
        for exam, accuracy in exams.items():
            rows[name]["accuracy"].setdefault(exam, []).append(accuracy)

    seen = taken * training.context
    text = f"{seen:,} tokens of training on each corpus\n\n{table(rows)}\n"
    if config.init:
        for exam, accuracy in accuracies(config, Path(tokenizer), to / "init").items():
            text += f"\naccuracy of {config.init} on {exam}: {100 * accuracy:.1f} %\n"
    print(f"\n{text}")
    with atomic_write(to.parent / "figure3.txt") as file:
        file.write(text)
    save(to.parent / "figure3.json", {"tokens": seen, "corpora": rows, "curves": curves})
    for held_out, lines in curves.items():
        named = {
            f"{name} ({rows[name]['epochs']:.2f} epochs)": line for name, line in lines.items()
        }
        title, loss = "Figure 3: one model, several corpora", f"loss per token on {held_out}"
        picture(to.parent / f"figure3_{held_out}.png", title, "tokens of training", loss, named)


if __name__ == "__main__":
    command(main, Config)
