"""Figure 7: maj@K and pass@K before and after reinforcement learning, K = 1 ... 64.

    python -m experiments.figure7 [--seeds 5] [--steps 60] [--to runs/figures]

Does maj@K rise while pass@K at large K does not (5.2.2)? Uses figure 5's runs of GRPO with process
supervision, and makes those that are missing. The samples are at temperature 0.7.
"""

from pathlib import Path

from experiments import common
from experiments.common import Config
from experiments.figure5 import METHODS
from runtime.run import command

KS = (1, 2, 4, 8, 16, 32, 64)
SHOWN = (1, 8, 64)  # in the table


def main(config: Config) -> None:
    start = common.prepare(config)
    rewards = common.reward_models(config, start)
    to = Path(config.to).resolve()

    # sample from the models before and after
    def evaluate(seed: int, name: str) -> dict:
        model = start.sft
        if name == "RL":
            directory = to / "figure5" / f"GRPO+PS_{seed}"
            options = METHODS["GRPO+PS"] | dict(reward_model=rewards.process)
            common.train_grpo(config, start, directory, seed, **options)
            model = directory / "model"
        sampling = dict(
            samples=KS[-1],
            temperature=0.7,
            limit=250,
            seed=seed,
        )
        return common.evaluate(config, start, model, to / "figure7" / f"{name}_{seed}", **sampling)

    runs = common.every_seed(config, ("SFT", "RL"), evaluate)
    lines = {}  # "Maj@K, SFT" -> (KS, [values of each seed])
    for measure in ("Maj", "Pass"):
        for name, results in runs.items():
            keys = [f"{measure.lower()}@{k}" for k in KS]
            lines[f"{measure}@K, {name}"] = KS, [[one[key] for key in keys] for one in results]

    # the table and the differences
    print(f"\n{'K':<14}" + "".join(f"{k:>34}" for k in SHOWN))
    for name, (_, seeds) in lines.items():
        cells = [common.percent([row[KS.index(k)] for row in seeds]) for k in SHOWN]
        print(f"{name:<14}" + "".join(f"{cell:>34}" for cell in cells))
    for measure in ("Maj@K", "Pass@K"):
        before = [row[-1] for row in lines[f"{measure}, SFT"][1]]
        after = [row[-1] for row in lines[f"{measure}, RL"][1]]
        print(f"{measure} at K = {KS[-1]} rises by {common.difference(before, after)}")

    values = {name: seeds for name, (_, seeds) in lines.items()}
    common.save(to / "figure7.json", {"k": KS, **values})
    title = "Figure 7: before and after"
    common.picture(to / "figure7.png", title, "K", "share of problems", lines, log_x=True)


if __name__ == "__main__":
    command(main, Config)
