"""Fixtures of the trainers' tests, made once a session when first asked for."""

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny world: its `tokenizer`, and a folder `root` of base/, model/, sft.jsonl, problems.jsonl and shards."""
    import training

    return training.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def together(tiny, tmp_path_factory):
    """The runs of all trainers on two processes, and their gradients: {directory of the runs}."""
    import training

    out = tmp_path_factory.mktemp("together")
    finished = training.start(["together", str(tiny.root), str(out)], processes=2)
    assert finished.returncode == 0, finished.stderr
    return out


@pytest.fixture(scope="session")
def alone(tiny):
    """The gradients of all trainers on one process, with micro-batches as large as the batch, and of a quarter."""
    import training

    return {micro: training.all_gradients(tiny.root, training.runtime.World(), micro) for micro in (1, 4)}


@pytest.fixture(scope="session")
def killed(tiny, tmp_path_factory):
    """killed(trainer, points): the directory of a killed and a whole run, and the log of the killed one."""
    import training

    def make(trainer, points):
        out = tmp_path_factory.mktemp("killed") / trainer
        return out, training.killed(trainer, tiny.root, out, points)

    return make
