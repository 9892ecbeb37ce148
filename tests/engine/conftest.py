"""Engine tests use one thread, since the models are tiny, and draw the same numbers in every run."""

import pytest
import tiny_llava
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=tiny_llava.PATHS)
def path(request, monkeypatch):
    """Runs a test once along each of the engine's paths."""
    monkeypatch.setattr(tiny_llava, "on_path", request.param)
    return request.param
