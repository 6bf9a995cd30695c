"""Figure 6: iterative reinforcement learning, the reward model trained on between the iterations (4.1.4).

    python -m experiments.figure6 [--seeds 5] [--steps 60] [--to runs/figures]

Three outer iterations of GRPO with process supervision share --steps. Does each add, and the first most? The control is
the same number of steps in three iterations whose reward model stays as it was.
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

ITERATIONS = 3


def main(config: Config) -> None:
    here = world(config)
    models = reward_models(config, here)
    to = Path(config.to).resolve()
    steps = -(-config.steps // ITERATIONS)
    common = dict(
        reward="process_model",
        supervision="process",
        reward_model=models["process"],
        iterations=ITERATIONS,
    )
    common |= dict(
        steps=steps, save_every=steps, keep=ITERATIONS
    )  # a checkpoint at the end of each iteration
    refresh = dict(
        reward_questions=180,
        reward_samples=8,
        reward_step_samples=8,
        reward_history=models["samples"],
    )
    methods = {
        "renewed": refresh | dict(reward_config="configs/demo/reward_refresh.toml"),
        "as it was": {},
    }
    curves, final = {}, {}

    def one(seed: int, name: str) -> tuple[list[dict], list[float]]:
        run = to / "figure6" / f"{name.replace(' ', '_')}_{seed}"
        metrics = grpo(config, here, run, seed, **common, **methods[name])
        models = [run / f"step_{(iteration + 1) * steps:06d}" for iteration in range(ITERATIONS)]
        found = [
            evaluation(config, here, model, run / f"eval_{i}")["accuracy"]
            for i, model in enumerate(models)
        ]
        return metrics, found

    runs = [(seed, name) for seed in range(config.seeds) for name in methods]
    for (_, name), (metrics, found) in zip(
        runs, parallel(config, [partial(one, *r) for r in runs]), strict=True
    ):
        x, values = curve(metrics, f"valid/{config.formats}")
        curves.setdefault(name, (x, []))[1].append(values)
        for iteration, accuracy in enumerate(found):
            final.setdefault(f"{name}, after iteration {iteration}", []).append(accuracy)
    sft = evaluation(config, here, here.sft, to / "figure5" / "sft" / "eval")["accuracy"]
    print(f"\ntest accuracy, %, {config.seeds} seeds\n{'SFT':<28} {100 * sft:.1f}")
    for name, values in final.items():
        print(f"{name:<28} {percent(values)}")
    before = [sft] * config.seeds
    for iteration in range(ITERATIONS):
        after = final[f"renewed, after iteration {iteration}"]
        print(f"iteration {iteration} adds {difference(before, after)}")
        before = after
    last = f"after iteration {ITERATIONS - 1}"
    print(
        f"renewed over as it was: {difference(final[f'as it was, {last}'], final[f'renewed, {last}'])}"
    )
    save(to / "figure6.json", {"sft": sft, "test": final, "curves": curves})
    picture(
        to / "figure6.png",
        "Figure 6: three iterations",
        "steps",
        "accuracy on held-out problems",
        curves,
    )


if __name__ == "__main__":
    command(main, Config)
