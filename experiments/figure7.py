"""Figure 7: Maj@K and Pass@K before and after reinforcement learning, K = 1 .. 64, at temperature 0.7.

    python -m experiments.figure7 [--seeds 5] [--steps 60] [--to runs/figures]

Uses figure 5's runs of GRPO with process supervision (and makes those that are missing). Does Maj@K rise while Pass@K
at large K does not?
"""

from functools import partial
from pathlib import Path

from experiments.common import (
    Config,
    difference,
    evaluation,
    grpo,
    parallel,
    percent,
    picture,
    reward_models,
    save,
    world,
)
from experiments.figure5 import METHODS
from runtime.run import command

KS = (1, 2, 4, 8, 16, 32, 64)


def main(config: Config) -> None:
    here = world(config)
    models = reward_models(config, here)
    to = Path(config.to).resolve()
    sampling = dict(samples=KS[-1], temperature=0.7, limit=250)
    found: dict[str, list[list[float]]] = {}

    def one(seed: int, name: str) -> dict:
        model = here.sft
        if name == "RL":
            run = to / "figure5" / f"GRPO+PS_{seed}"
            grpo(config, here, run, seed, **METHODS["GRPO+PS"], reward_model=models["process"])
            model = run / "model"
        return evaluation(
            config, here, model, to / "figure7" / f"{name}_{seed}", seed=seed, **sampling
        )

    runs = [(seed, name) for seed in range(config.seeds) for name in ("SFT", "RL")]
    for (_, name), results in zip(
        runs, parallel(config, [partial(one, *r) for r in runs]), strict=True
    ):
        for measure in ("maj", "pass"):
            row = [results[f"{measure}@{k}"] for k in KS]
            found.setdefault(f"{measure.capitalize()}@K, {name}", []).append(row)
    print(f"\n{'K':<14}" + "".join(f"{k:>34}" for k in (1, 8, 64)))
    for name, seeds in found.items():
        print(
            f"{name:<14}"
            + "".join(f"{percent([row[KS.index(k)] for row in seeds]):>34}" for k in (1, 8, 64))
        )
    for measure in ("Maj@K", "Pass@K"):
        before, after = ([row[-1] for row in found[f"{measure}, {name}"]] for name in ("SFT", "RL"))
        print(f"{measure} at K = 64 rises by {difference(before, after)}")
    save(to / "figure7.json", {"k": KS, **found})
    lines = {name: (KS, seeds) for name, seeds in found.items()}
    picture(
        to / "figure7.png",
        "Figure 7: before and after",
        "K",
        "share of problems",
        lines,
        log_x=True,
    )


if __name__ == "__main__":
    command(main, Config)
