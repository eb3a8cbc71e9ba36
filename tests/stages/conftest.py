"""An experiment folder for the tests of the training stages."""

import pytest
import torch

from tests.world import write_experiment


@pytest.fixture
def one_thread():
    """The tests' nets are too small for two threads, and others may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch, one_thread):
    """An experiment folder with a data set, crops, an untrained encoder and parameters."""
    write_experiment(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
