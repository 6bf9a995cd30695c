"""Reward hacking, on purpose: GRPO against a weak outcome model, beside one against a judge of the usual size.

    python -m experiments.hacking [--seeds 3] [--to runs/figures]

The weak one has seen 24 questions for 60 steps. Its reward goes on rising while the share of right answers does not:
that is what `gap` in metrics.jsonl is for. Draws both curves for both judges, with mean and interval over seeds.
"""

from functools import partial
from pathlib import Path

from experiments.common import (
    Config,
    curve,
    flags,
    grpo,
    parallel,
    percent,
    picture,
    reward_models,
    run,
    save,
    world,
)
from runtime.run import command

WEAK = dict(limit=24, samples=8, steps=60)


def main(config: Config) -> None:
    here = world(config)
    models = reward_models(config, here)
    to = Path(config.to).resolve() / "hacking"
    chosen = dict(
        model=here.sft,
        problems=here.problems,
        formats=config.formats,
        max_new_tokens=config.max_new_tokens,
    )
    few = to / "few.jsonl"
    run(few, "rollout.py", *flags(**chosen, limit=WEAK["limit"], samples=WEAK["samples"], to=few))
    options = dict(kind="outcome", init=here.base, data=few, to=to / "weak", steps=WEAK["steps"])
    run(
        to / "weak" / "summary.json",
        "train_reward.py",
        "--config",
        "configs/demo/reward.toml",
        *flags(**options),
    )
    judges = {"weak": str(to / "weak" / "model"), "usual": models["outcome"]}
    lines, last = {}, {}

    def one(seed: int, name: str) -> list[dict]:
        own = dict(
            configuration="configs/demo/hacked.toml",
            reward_model=judges[name],
            reward="outcome_model",
        )
        return grpo(config, here, to / f"{name}_{seed}", seed, **own, beta=0.0, lr=4 * config.lr)[
            1:
        ]

    runs = [(seed, name) for seed in range(config.seeds) for name in judges]
    for (_, name), metrics in zip(
        runs, parallel(config, [partial(one, *r) for r in runs]), strict=True
    ):
        for key, title in (("reward", "its reward"), ("rule", "right answers")):
            x, values = curve(metrics, key)
            windows = [values[max(0, i - 9) : i + 1] for i in range(len(values))]
            smooth = [sum(window) / len(window) for window in windows]
            lines.setdefault(f"{name} judge: {title}", (x, []))[1].append(smooth)
            last.setdefault(f"{name} judge: {title}", []).append(smooth[-1])
    print(f"\nmean of the last ten steps' samples, %, {config.seeds} seeds")
    for name, values in last.items():
        print(f"{name:<28} {percent(values)}")
    save(to.parent / "hacking.json", {"last": last, "curves": lines})
    title = "Reward against right answers (means of ten steps)"
    picture(to.parent / "hacking.png", title, "steps", "share, of the samples", lines)


if __name__ == "__main__":
    command(main, Config)
