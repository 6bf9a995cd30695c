"""Best-of-N: is the completion that a reward model likes best the right one? Outcome against process model.

    python -m experiments.best_of_n [--seeds 3] [--to runs/figures]

16 samples of the SFT model for every test problem; reward models of several seeds, trained on the same samples of
training problems. Chance is what a completion taken at random would get.
"""

import json
from functools import partial
from pathlib import Path

from experiments.common import (
    Config,
    difference,
    flags,
    parallel,
    percent,
    reward_models,
    run,
    save,
    world,
)
from runtime.run import command

MEASURES = ("best_of_n", "valid_auc", "valid_auc_within", "valid_calibration_error")


def main(config: Config) -> None:
    here = world(config)
    data = reward_models(config, here)["samples"]
    to = Path(config.to).resolve() / "best_of_n"
    test = to / "test.jsonl"
    chosen = dict(
        model=here.sft,
        problems=here.test,
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
    )
    run(test, "rollout.py", *flags(**chosen, samples=16, step_samples=4, to=test))

    def one(seed: int, kind: str) -> dict:
        own = to / f"{kind}_{seed}"
        options = dict(
            kind=kind, init=here.base, data=data, valid=test, valid_every=10**6, seed=seed, to=own
        )
        run(
            own / "summary.json",
            "train_reward.py",
            "--config",
            "configs/demo/reward.toml",
            *flags(**options),
        )
        return json.loads((own / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])

    kinds = ("outcome", "process")
    runs = [(seed, kind) for seed in range(config.seeds) for kind in kinds]
    found: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for (_, kind), last in zip(
        runs, parallel(config, [partial(one, *r) for r in runs]), strict=True
    ):
        found[kind].append(last)
    values = {
        kind: {key: [last[key] for last in rows] for key in MEASURES}
        for kind, rows in found.items()
    }
    print(
        f"\ntest problems, {config.seeds} seeds; chance {100 * found['outcome'][0]['random_of_n']:.1f}"
    )
    for key in MEASURES:
        for kind in kinds:
            print(f"{key:<24} {kind:<8} {percent(values[kind][key])}")
    print(f"process over outcome: {difference(*(values[kind]['best_of_n'] for kind in kinds))}")
    save(
        to.parent / "best_of_n.json", {"random_of_n": found["outcome"][0]["random_of_n"], **values}
    )


if __name__ == "__main__":
    command(main, Config)
