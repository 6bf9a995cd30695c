import pytest
import torch
from toy import run_toy


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """How sums are split over threads decides their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The directory of a toy run that nothing happens to."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    run_toy(directory)
    return directory
