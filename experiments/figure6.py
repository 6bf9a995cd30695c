"""Figure 6: iterative reinforcement learning. The reward model also learns (4.1.4).

    python -m experiments.figure6 [--seeds 5] [--steps 60] [--to runs/figures]

Three outer iterations of GRPO with process supervision share --steps. Does each iteration add
accuracy, and the first most? The control has the same steps and iterations with one reward model.
"""

from pathlib import Path

from experiments import common
from experiments.common import Config
from runtime.run import command

ITERATIONS = 3


def main(config: Config) -> None:
    start = common.prepare(config)
    rewards = common.reward_models(config, start)
    to = Path(config.to).resolve()
    steps = -(-config.steps // ITERATIONS)  # of an iteration
    options = dict(
        reward="process_model",
        supervision="process",
        reward_model=rewards.process,
        iterations=ITERATIONS,
        steps=steps,
        save_every=steps,
    )
    methods = {
        "renewed": dict(
            reward_questions=180,
            reward_config="configs/demo/reward_iterations.toml",
        ),
        "as it was": {},
    }

    # train each method with each seed, and evaluate the model of each iteration
    def train(seed: int, name: str) -> tuple[list[dict], list[float]]:
        directory = to / "figure6" / f"{name.replace(' ', '_')}_{seed}"
        metrics = common.train_grpo(config, start, directory, seed, **options, **methods[name])
        accuracies = []
        for iteration in range(ITERATIONS):
            # the policy after an iteration is the reference of the next
            last = iteration + 1 == ITERATIONS
            model = directory / ("model" if last else f"reference_{iteration + 1}")
            figures = common.evaluate(config, start, model, directory / f"eval_{iteration}")
            accuracies.append(figures["accuracy"])
        return metrics, accuracies

    runs = common.every_seed(config, methods, train)
    sft = common.sft_accuracy(config, start)

    # accuracies and differences
    final = {}
    for name, pairs in runs.items():
        for iteration in range(ITERATIONS):
            row = f"{name}, after iteration {iteration}"
            final[row] = [accuracies[iteration] for _, accuracies in pairs]
    common.print_accuracies(sft, final)
    before = [sft] * config.seeds
    for iteration in range(ITERATIONS):
        after = final[f"renewed, after iteration {iteration}"]
        print(f"iteration {iteration} adds {common.difference(before, after)}")
        before = after
    control = final[f"as it was, after iteration {ITERATIONS - 1}"]
    print(f"renewed over as it was: {common.difference(control, before)}")

    # curves
    lines = {}
    for name, pairs in runs.items():
        lines[name] = common.curves([metrics for metrics, _ in pairs], f"valid/{config.formats}")
    common.save(to / "figure6.json", {"sft": sft, "test": final, "curves": lines})
    title = "Figure 6: three iterations"
    common.picture(to / "figure6.png", title, "steps", "accuracy on held-out problems", lines)


if __name__ == "__main__":
    command(main, Config)
