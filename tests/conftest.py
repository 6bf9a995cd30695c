"""Fixtures of the trainers' tests, made once a session when first asked for."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see runtime/__init__.py
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

DATA = Path(os.environ.get("MATH_DATA", Path(__file__).parents[1] / "../shared/data"))


@pytest.fixture(scope="session")
def real():
    """real(name): the path of a file of real data; a test that needs one which is not there is skipped."""

    def find(name):
        if not (DATA / name).exists():
            pytest.skip(f"{DATA / name} is missing; set MATH_DATA to the folder of the data")
        return DATA / name

    return find


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny world: its `tokenizer`, and a folder `root` of base/, model/, data files and shards."""
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

    return {micro: training.all_gradients(tiny.root, training.World(), micro) for micro in (1, 4)}


@pytest.fixture(scope="session")
def killed(tiny, tmp_path_factory):
    """killed(trainer, points): the directory of a killed and a whole run, and the log of the killed one."""
    import training

    def make(trainer, points):
        out = tmp_path_factory.mktemp("killed") / trainer
        return out, training.killed(trainer, tiny.root, out, points)

    return make


@pytest.fixture(scope="session")
def accelerated():
    """The tests run by accelerators, as a run does, where they do not say otherwise.

    Code counts as proved here. tests/kernels/test_agreement.py compares it with what was recorded.
    """
    import kernels
    from presets import preset

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_edited", lambda *args: "")
        return kernels.use("fast", kernels.Setting(preset("1m", 300)))


@pytest.fixture(autouse=True)
def same_kernels(accelerated):
    """What a test uses ends with it."""
    import kernels

    with kernels.restored():
        yield
