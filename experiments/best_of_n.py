"""Best-of-N: is the completion with the highest reward right? Outcome model against process model.

    python -m experiments.best_of_n [--seeds 3] [--to runs/figures]

Takes 16 samples of the SFT model for every test problem, and reward models of several seeds, which
are trained on the same samples of training problems. Chance is a completion taken at random.
"""

from pathlib import Path

from experiments import common
from experiments.common import Config
from runtime.run import command

KINDS = ("outcome", "process")
MEASURES = ("best_of_n", "valid_auc", "valid_auc_within", "valid_calibration_error")


def main(config: Config) -> None:
    start = common.prepare(config)
    data = common.reward_models(config, start).samples
    to = Path(config.to).resolve() / "best_of_n"
    test = to / "test.jsonl"
    common.sample(
        config,
        start,
        test,
        problems=start.test,
        samples=16,
        step_samples=4,
    )

    # the last metrics of a reward model of each kind and seed
    def train(seed: int, kind: str) -> dict:
        directory = to / f"{kind}_{seed}"
        options = dict(
            kind=kind,
            data=data,
            valid=test,
            valid_every=10**6,
            seed=seed,
        )
        common.train_reward(start, directory, **options)
        return common.read_metrics(directory)[-1]

    runs = common.every_seed(config, KINDS, train)
    chance = runs["outcome"][0]["random_of_n"]
    values: dict[str, dict[str, list[float]]] = {}
    for kind, rows in runs.items():
        values[kind] = {key: [row[key] for row in rows] for key in MEASURES}

    print(f"\ntest problems, {config.seeds} seeds; chance {100 * chance:.1f}")
    for key in MEASURES:
        for kind in KINDS:
            print(f"{key:<24} {kind:<8} {common.percent(values[kind][key])}")
    best = [values[kind]["best_of_n"] for kind in KINDS]
    print(f"process over outcome: {common.difference(*best)}")
    common.save(to.parent / "best_of_n.json", {"random_of_n": chance, **values})


if __name__ == "__main__":
    command(main, Config)
