"""Plumbing of the trainers. A reader of the method may skip it.

options.py      options from defaults, TOML files and the command line
distributed.py  the processes of a run, seeds, kernels, FSDP2
optim.py        AdamW, learning rates, the limit of the gradient's norm, speed, memory
checkpoint.py   checkpoints
run.py          the run directory: config, metrics, checkpoints, signals
metrics.py      what is logged of rollouts
hf.py           Hugging Face model directories
families.py     their settings and names, for each family of models

A trainer uses them like this:

    config = parse(Config)                     defaults, then TOML files, then the command line
    world = setup(config.device)               this process, or those that torchrun started
    run = Run(config, world)                   runs/NAME: config, metrics, checkpoints, model
    model = shard(model, world)
    optimizer = adamw(model, config.lr)
    run.checkpointing(model, tokens=config.micro_tokens)
    start, state = run.resume(model, optimizer)
    for step in range(start + 1, config.steps + 1):
        run.phase("update")
        ...
        clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        run.log(step, metrics, Work(tokens, flops))
        run.checkpoint(step, model, tokenizer, optimizer, state)
    run.finish(model, tokenizer, {...})

On a CPU, a resumed run repeats the uninterrupted run bit for bit if the number of processes and of
threads is the same, because sums of floats depend on how they are split. Random numbers come from
`seeded`, or from a generator that is saved in the state.
"""

import os

# A thread that waits for another one sleeps. By default it spins for milliseconds: beside other
# programs a step of a small model then takes ten times as long. OpenMP reads this when torch is
# loaded, so that the programs import runtime.options before torch (see pyproject.toml).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
