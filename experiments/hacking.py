"""Reward hacking on purpose: GRPO with a weak outcome model, and with one of the usual size.

    python -m experiments.hacking [--seeds 3] [--to runs/figures]

The weak model has seen 24 questions for 60 steps. Its reward keeps rising while the share of right
answers does not; metrics.jsonl shows this as `gap`. Draws reward and right answers with both
models.
"""

from pathlib import Path

from experiments import common
from experiments.common import Config
from runtime.run import command

TITLES = {"reward": "its reward", "verdict": "right answers"}
WINDOW = 10  # steps of a moving mean


def main(config: Config) -> None:
    start = common.prepare(config)
    rewards = common.reward_models(config, start)
    to = Path(config.to).resolve() / "hacking"

    # the weak reward model
    few = to / "few.jsonl"
    common.sample(
        config,
        start,
        few,
        problems=start.problems,
        limit=24,
        samples=8,
    )
    common.train_reward(
        start,
        to / "weak",
        kind="outcome",
        data=few,
        steps=60,
    )
    models = {"weak": str(to / "weak" / "model"), "usual": rewards.outcome}

    # GRPO without KL, so that nothing holds the policy back
    def train(seed: int, name: str) -> list[dict]:
        options = dict(
            reward="outcome_model",
            reward_model=models[name],
            beta=0.0,
        )
        directory, lr = to / f"{name}_{seed}", 4 * config.lr
        toml = "configs/demo/hacked.toml"
        return common.train_grpo(config, start, directory, seed, toml, lr=lr, **options)[1:]

    runs = common.every_seed(config, models, train)
    lines, last = {}, {}
    for name, seeds in runs.items():
        for key, title in TITLES.items():
            row = f"{name} judge: {title}"
            steps, values = common.curves(seeds, key)
            smooth = [moving_mean(one) for one in values]
            lines[row] = steps, smooth
            last[row] = [one[-1] for one in smooth]

    print(f"\nmean of the last {WINDOW} steps' samples, %, {config.seeds} seeds")
    for name, values in last.items():
        print(f"{name:<28} {common.percent(values)}")
    common.save(to.parent / "hacking.json", {"last": last, "curves": lines})
    title = f"Reward against right answers (means of {WINDOW} steps)"
    common.picture(to.parent / "hacking.png", title, "steps", "share of the samples", lines)


def moving_mean(values: list[float]) -> list[float]:
    """Means of each value and those before it, at most WINDOW together."""
    windows = [values[max(0, i - WINDOW + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


if __name__ == "__main__":
    command(main, Config)
