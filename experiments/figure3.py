"""Figure 3: the same small model trained on several corpora for the same tokens (2.2).

    python -m experiments.figure3 --corpora crawl=DIR,mined=DIR --valid math=FILE.jsonl [--to DIR]

A corpus is a JSONL file of pages, or a folder of them. One tokenizer cuts all of them: --tokenizer,
that of --init, or one that is trained on all of them together. Each seed trains a model on each
corpus with the same initial weights, steps and schedule. A corpus smaller than the training is
repeated; the table says how often.

Prints and writes the losses on held-out text with intervals over seeds, and how far each corpus is
from the first, seed by seed. With --problems also the accuracy of the final models by eval.py,
without exemplars (the paper uses some), which favors a corpus in which questions look like its
prompts.

The held-out text decides what is compared. It must be in no corpus, and no corpus may have helped
to choose it: pages that a classifier picked would favor what the same classifier picked. For the
built-in web two texts are fair:

    python -m data.world.synthetic --to DIR --documents 4000    DIR/documents/valid_math.jsonl
    python -m data.world.web --to DIR --seed 1 --jsonl          the mathematics in DIR/truth.jsonl

The first has solved problems of the valid split, which no page shows, and no site's layout. Like
the paper's benchmarks it asks what a corpus teaches about mathematics. The second has every style
of page in its true proportion, and shows what a corpus without some of them lacks. Its word
problems are of the train split and its phrases those of all webs, so it is easier to learn by
heart.
"""

import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from runtime.options import option, parse

import numpy as np

import train_pretrain
from data.io import InputError, atomic_write, jsonl_files
from data.problems import readers
from data.shards import Shards, encode_documents, texts, write_shards
from data.tokenizer import Tokenizer
from data.train_tokenizer import train
from experiments import common
from experiments.common import ROOT, flags, mean_interval, percent, picture, run, save
from runtime.run import command


@dataclass
class Config:
    corpora: dict[str, str] = option({}, "JSONL files of {text}, or folders of them", required=True)
    valid: dict[str, str] = option({}, "held-out text; see above for what is fair", required=True)
    problems: list[str] = option([], "problem files for the final models; none: losses alone")
    to: str = option("runs/figures", "directory of the shards, runs, table and pictures")
    # the model and its training
    training: str = option("configs/demo/pretrain.toml", "configuration of train_pretrain.py")
    size: str = option("1m", "size preset of the model")
    init: str = option("", "model to continue from instead, with its tokenizer, as in the paper")
    tokenizer: str = option("", "tokenizer directory; empty: one is trained on all corpora")
    vocab_size: int = option(2048, "size of that tokenizer", least=1)
    steps: int = option(200, "optimizer steps on each corpus", least=1)
    seeds: int = option(3, "models trained on each corpus", least=1)
    jobs: int = option(2, "runs at the same time; they share the processor's cores", least=1)
    # evaluation
    points: int = option(10, "points of a curve", least=1)
    valid_windows: int = option(64, "sequences of each held-out text", least=1)
    formats: str = option("cot", "kind of solution", choices=("cot", "pot"))
    max_new_tokens: int = option(64, "longest answer to a problem", least=1)


def corpus_files(where: str, path: str) -> list[Path]:
    """The JSONL file, or those of the folder by name. `where` begins the InputError."""
    found = Path(path).resolve()
    if not found.exists():
        raise InputError(f"{where}: does not exist; give a JSONL file or a folder of them")
    return list(jsonl_files([found]))


@dataclass
class Sharder:
    """Makes the token shards of a figure, in the folder `to`."""

    tokenizer: Tokenizer
    to: Path
    context: int

    def make(
        self,
        kind: str,
        name: str,
        files: list[Path],
    ) -> dict:
        """Shards of the files in TO/KIND/NAME, unless they exist. Returns their manifest.

        Raises InputError if there are fewer tokens than a window.
        """
        to, tokenizer = self.to / kind / name, self.tokenizer
        if not (to / "manifest.json").exists():
            documents = encode_documents(chain.from_iterable(map(texts, files)), tokenizer)
            size, eos = tokenizer.vocab_size, tokenizer.eos_id
            write_shards(documents, to, tokenizer.hash, name, size, eos)
        manifest = Shards(to).manifest
        if manifest["tokens"] <= self.context:
            raise InputError(
                f"--{kind} {name}: {manifest['tokens']} tokens are fewer than one window of "
                f"{self.context + 1}; give more text or a smaller context"
            )
        return manifest


def epochs(tokens: int, context: int, rows: int) -> float:
    """How often `rows` windows of training go through a corpus.

    >>> epochs(1001, 100, 25)  # the corpus has 10 windows
    2.5
    """
    return rows / ((tokens - 1) // context)


def check_setup(path: Path, setup: dict) -> None:
    """Write what decides the results. Raises InputError if earlier runs had another setup."""
    if not path.exists():
        with atomic_write(path) as file:
            json.dump(setup, file, indent=1)
    before = json.loads(path.read_text(encoding="utf-8"))
    setup = json.loads(json.dumps(setup))
    changed = [name for name, value in setup.items() if before.get(name) != value]
    if changed:
        raise InputError(
            f"{path.parent}: made with other values of {', '.join(changed)}; give another --to"
        )


def prepare(
    config: Config, to: Path, training: train_pretrain.Config
) -> tuple[str, dict[str, dict]]:
    """(tokenizer directory, manifest of each corpus), with shards in TO/corpora and TO/valid."""
    # the files, and the setup with their sizes
    files: dict[str, dict[str, list[Path]]] = {"corpora": {}, "valid": {}}
    setup = asdict(config) | {"training": asdict(training)}
    for kind in files:
        setup[kind] = {}
        for name, path in getattr(config, kind).items():
            chosen = corpus_files(f"--{kind} {name}={path}", path)
            files[kind][name] = chosen
            setup[kind][name] = [[str(file), file.stat().st_size] for file in chosen]
    for name in ("to", "seeds", "jobs"):  # they change nothing that exists
        del setup[name]
    check_setup(to / "setup.json", setup)

    # the tokenizer
    directory = Path(config.init or config.tokenizer or to / "tokenizer").resolve()
    if not (config.init or config.tokenizer or (directory / "tokenizer.json").exists()):
        everything = chain.from_iterable(files["corpora"].values())
        train(chain.from_iterable(map(texts, everything)), config.vocab_size).save(directory)

    # the shards
    sharder = Sharder(Tokenizer.load(directory), to, training.context)
    for name, chosen in files["valid"].items():
        sharder.make("valid", name, chosen)
    manifests = {n: sharder.make("corpora", n, chosen) for n, chosen in files["corpora"].items()}
    return str(directory), manifests


def accuracies(config: Config, model: Path, to: Path) -> dict[str, float]:
    """The model's greedy accuracy on each problem file; {} without --problems."""
    if not config.problems:
        return {}
    files = ",".join(str(Path(path).resolve()) for path in config.problems)
    limits = dict(formats=config.formats, max_new_tokens=config.max_new_tokens)
    run(
        to / "results.json",
        "eval.py",
        *flags(model=model, problems=files, **limits, to=to),
    )
    results = json.loads((to / "results.json").read_text(encoding="utf-8"))["results"]
    return {name: figures["accuracy"] for name, figures in results.items()}


def losses(values) -> str:
    """Losses of several seeds, e.g. "2.312 (dev. 0.013, 2.280 - 2.344)", with the 95 % interval."""
    mean, deviation, half = mean_interval(values)
    return f"{mean:.3f} (dev. {deviation:.3f}, {mean - half:.3f} - {mean + half:.3f})"


def below(first, second) -> str:
    """How far the second losses are below the first, seed by seed, with the 95 % interval."""
    mean, _, half = mean_interval(np.subtract(first, second))
    verdict = common.verdict(mean, half)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}): {verdict}"


def table(rows: dict[str, dict]) -> str:
    """The results as text.

    rows: for each corpus documents, tokens, epochs, and lists over seeds of final loss and
    accuracy.
    """
    first, *others = rows
    lines = [f"{'corpus':<16} {'documents':>10} {'tokens':>13} {'epochs':>7}"]
    for name, row in rows.items():
        counts = f"{row['documents']:>10,} {row['tokens']:>13,} {row['epochs']:>7.2f}"
        lines.append(f"{name:<16} {counts}")
    for text, values in rows[first]["loss"].items():
        lines += ["", f"loss per token on {text}, {len(values)} seeds"]
        lines += [f"{name:<16} {losses(row['loss'][text])}" for name, row in rows.items()]
        for name in others:
            lines.append(f"{name} below {first}: {below(values, rows[name]['loss'][text])}")
    for exam, values in rows[first]["accuracy"].items():
        lines += ["", f"accuracy on {exam}, %, {len(values)} seeds"]
        lines += [f"{name:<16} {percent(row['accuracy'][exam])}" for name, row in rows.items()]
    return "\n".join(lines)


def main(config: Config) -> None:
    # tokens of all texts
    for path in config.problems:
        readers.load(path)  # refused now rather than after the training
    to = Path(config.to).resolve() / "figure3"
    training = parse(
        train_pretrain.Config,
        ["--config", str(ROOT / config.training)],
        partial=True,
    )
    tokenizer, manifests = prepare(config, to, training)
    windows = config.steps * training.batch
    seen = windows * training.context  # tokens

    # the corpora
    rows: dict[str, dict] = {}
    for name, manifest in manifests.items():
        counts = {key: manifest[key] for key in ("documents", "tokens")}
        times = epochs(manifest["tokens"], training.context, windows)
        rows[name] = {
            **counts,
            "epochs": times,
            "loss": {},
            "accuracy": {},
        }
        print(f"{name}: {manifest['tokens']:,} tokens, seen {times:.2f} times", flush=True)

    # train and evaluate a model on each corpus with each seed
    options = dict(
        steps=config.steps,
        valid=",".join(f"{name}={to / 'valid' / name}" for name in config.valid),
        valid_every=max(1, config.steps // config.points),
        valid_windows=config.valid_windows,
        weights="corpus=1",
        keep=1,
    )
    if config.init:
        options["init"] = tokenizer
    else:
        options |= dict(size=config.size, tokenizer=tokenizer)

    def train_model(seed: int, name: str) -> tuple[list[dict], dict[str, float]]:
        # The source is called "corpus" each time: its name and the seed decide the order of the
        # data.
        directory = to / "runs" / f"{name}_{seed}"
        data = f"corpus={to / 'corpora' / name}"
        words = flags(**options, data=data, seed=seed, to=directory)
        done = directory / "summary.json"
        run(done, "train_pretrain.py", "--config", config.training, *words)
        exams = accuracies(config, directory / "model", directory / "eval")
        return common.read_metrics(directory), exams

    runs = common.every_seed(config, rows, train_model)

    # losses, accuracies, curves
    curves: dict[str, dict] = {text: {} for text in config.valid}
    for name, pairs in runs.items():
        for text, lines in curves.items():
            steps, values = common.curves([metrics for metrics, _ in pairs], f"valid_loss/{text}")
            tokens = [step * training.batch * training.context for step in steps]
            lines[name] = tokens, values
            rows[name]["loss"][text] = [seed[-1] for seed in values]
        for exam in pairs[0][1]:
            rows[name]["accuracy"][exam] = [exams[exam] for _, exams in pairs]

    # table and pictures
    text = f"{seen:,} tokens of training on each corpus\n\n{table(rows)}\n"
    if config.init:
        for exam, accuracy in accuracies(config, Path(tokenizer), to / "init").items():
            text += f"\naccuracy of {config.init} on {exam}: {100 * accuracy:.1f} %\n"
    print(f"\n{text}")
    with atomic_write(to.parent / "figure3.txt") as file:
        file.write(text)
    save(
        to.parent / "figure3.json",
        {
            "tokens": seen,
            "corpora": rows,
            "curves": curves,
        },
    )
    title = "Figure 3: one model, several corpora"
    for name, lines in curves.items():
        named = {f"{row} ({rows[row]['epochs']:.2f} epochs)": line for row, line in lines.items()}
        path, label = to.parent / f"figure3_{name}.png", f"loss per token on {name}"
        picture(path, title, "tokens of training", label, named)


if __name__ == "__main__":
    command(main, Config)
