"""Plumbing of the trainers. A reader of the method may skip it.

options.py      options from defaults, TOML files and the command line
distributed.py  the processes of a run, FSDP2, seeds
optim.py        AdamW, schedules, the limit of the gradient's norm, speed
checkpoint.py   checkpoints
run.py          the run directory: config, metrics, checkpoints, signals
hf.py           Hugging Face model directories

A trainer uses them like this:

    config = parse(Config)                         defaults <- TOML files <- command line
    world = setup(config.device)                   this process, or those that torchrun started
    run = Run(config, world)                       runs/NAME: config.toml, metrics.jsonl, step_*, model, summary.json
    model = shard(model, world)
    optimizer = adamw(model, config.lr)
    start, state = run.resume(model, optimizer)
    for step in range(start + 1, config.steps + 1):
        ...
        clip_grad_norm(model, config.max_grad_norm)
        optimizer.step()
        run.log(step, metrics, timing)
        run.checkpoint(step, model, tokenizer, optimizer, state)
    run.finish(model, tokenizer, {...})

On a CPU, a resumed run repeats the uninterrupted run bit for bit if the number of processes and of threads is the same.
(Sums of floats depend on how they are split.) Random numbers come from `seeded` or from a generator saved in the state.
"""
