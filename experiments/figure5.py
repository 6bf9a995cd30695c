"""Figure 5: RFT, Online RFT, GRPO with outcome supervision and with process supervision (5.2.1).

    python -m experiments.figure5 [--seeds 5] [--steps 60] [--to runs/figures]

Is Online RFT better than RFT, GRPO better than Online RFT, process supervision better than outcome
supervision? As in the paper, RFT uses the rule and GRPO a reward model; GRPO with the rule is
added. Prints the accuracy on test problems and the differences, with intervals over seeds. Draws
the accuracy on held-out problems over the steps.
"""

from pathlib import Path

from experiments import common
from experiments.common import Config
from runtime.run import command

METHODS = {
    "RFT": dict(algorithm="rft"),
    "Online RFT": dict(algorithm="online_rft"),
    "GRPO+OS": dict(reward="outcome_model"),
    "GRPO+PS": dict(reward="process_model", supervision="process"),
    "GRPO+rule": {},  # not in the paper: differs from Online RFT only in the gradient coefficient
}
CLAIMS = (
    ("RFT", "Online RFT"),
    ("Online RFT", "GRPO+OS"),
    ("GRPO+OS", "GRPO+PS"),
    ("Online RFT", "GRPO+rule"),
)


def main(config: Config) -> None:
    start = common.prepare(config)
    rewards = common.reward_models(config, start)
    to = Path(config.to).resolve()

    # train and evaluate each method with each seed
    def train(seed: int, name: str) -> tuple[list[dict], float]:
        directory = to / "figure5" / f"{name.replace(' ', '_')}_{seed}"
        options = dict(METHODS[name])
        if name == "GRPO+OS":
            options["reward_model"] = rewards.outcome
        if name == "GRPO+PS":
            options["reward_model"] = rewards.process
        metrics = common.train_grpo(config, start, directory, seed, **options)
        figures = common.evaluate(config, start, directory / "model", directory / "eval")
        return metrics, figures["accuracy"]

    sft = common.sft_accuracy(config, start)
    runs = common.every_seed(config, METHODS, train)

    # accuracies and differences
    final = {name: [accuracy for _, accuracy in pairs] for name, pairs in runs.items()}
    common.print_accuracies(sft, final)
    for first, second in CLAIMS:
        print(f"{second} over {first}: {common.difference(final[first], final[second])}")

    # curves
    lines = {}
    for name, pairs in runs.items():
        lines[name] = common.curves([metrics for metrics, _ in pairs], f"valid/{config.formats}")
    common.save(to / "figure5.json", {"sft": sft, "test": final, "curves": lines})
    title = "Figure 5: RFT, Online RFT, GRPO"
    common.picture(to / "figure5.png", title, "steps", "accuracy on held-out problems", lines)


if __name__ == "__main__":
    command(main, Config)
