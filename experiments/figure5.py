"""Figure 5: RFT, Online RFT, GRPO with outcome supervision and with process supervision, over the steps.

    python -m experiments.figure5 [--seeds 5] [--steps 60] [--to runs/figures]

Does Online RFT beat RFT, GRPO Online RFT, and process supervision outcome supervision? RFT takes the rule's word, GRPO
its reward model's, as in the paper; GRPO with the rule is drawn beside them. Prints the accuracy on test
problems by method, mean and interval over seeds, and each difference seed by seed; draws the curves on held-out ones.
"""

from functools import partial
from pathlib import Path

from experiments.common import (
    Config,
    curve,
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
from runtime.run import command

METHODS = {
    "RFT": dict(algorithm="rft", data_source="sft"),
    "Online RFT": dict(algorithm="rft", data_source="policy"),
    "GRPO+OS": dict(reward="outcome_model"),
    "GRPO+PS": dict(reward="process_model", supervision="process"),
    "GRPO+rule": {},  # not in the paper: the reward of the first two, so that only the coefficient differs from theirs
}
CLAIMS = (
    ("RFT", "Online RFT"),
    ("Online RFT", "GRPO+OS"),
    ("GRPO+OS", "GRPO+PS"),
    ("Online RFT", "GRPO+rule"),
)


def main(config: Config) -> None:
    here = world(config)
    models = reward_models(config, here)
    to = Path(config.to).resolve()
    curves, final = {}, {name: [] for name in METHODS}
    sft = evaluation(config, here, here.sft, to / "figure5" / "sft" / "eval")["accuracy"]

    def one(seed: int, name: str) -> tuple[list[dict], float]:
        options = METHODS[name]
        kind = options.get("reward", "rule").removesuffix("_model")
        judge = {} if kind == "rule" else dict(reward_model=models[kind])
        run = to / "figure5" / f"{name.replace(' ', '_')}_{seed}"
        metrics = grpo(config, here, run, seed, **options, **judge)
        return metrics, evaluation(config, here, run / "model", run / "eval")["accuracy"]

    runs = [
        (seed, name) for seed in range(config.seeds) for name in METHODS
    ]  # a stopped figure has whole seeds
    for (_, name), (metrics, accuracy) in zip(
        runs, parallel(config, [partial(one, *r) for r in runs]), strict=True
    ):
        x, values = curve(metrics, f"valid/{config.formats}")
        curves.setdefault(name, (x, []))[1].append(values)
        final[name].append(accuracy)
    print(f"\ntest accuracy, %, {config.seeds} seeds\n{'SFT':<12} {100 * sft:.1f}")
    for name, values in final.items():
        print(f"{name:<12} {percent(values)}")
    for first, second in CLAIMS:
        print(f"{second} over {first}: {difference(final[first], final[second])}")
    save(to / "figure5.json", {"sft": sft, "test": final, "curves": curves})
    picture(
        to / "figure5.png",
        "Figure 5: RFT, Online RFT, GRPO",
        "steps",
        "accuracy on held-out problems",
        curves,
    )


if __name__ == "__main__":
    command(main, Config)
