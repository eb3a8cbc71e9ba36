"""torch.hub on a local clone."""

import numpy as np
import torch

from tests.pipeline import REPOSITORY


def load(name, *arguments, **more):
    return torch.hub.load(str(REPOSITORY), name, *arguments, source="local", trust_repo=True, verbose=False, **more)


def test_a_fresh_net_a_file_and_a_predictor(tmp_path):
    size = {"width": 4, "fc_width": 16, "input_size": 64}
    net = load("deconvnet", classes=3, **size)
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 3, 64, 64)
    assert load("fcn8s", classes=3, **size).eval()(torch.zeros(1, 3, 40, 50)).shape == (1, 3, 40, 50)
    from deconvnet import save

    about = {"classes": ["background", "cat", "dog"], "windows": {"context": 1.2, "square": True}}
    save(tmp_path / "model.pt", net.spec, net.state_dict(), about)
    again = load("deconvnet", str(tmp_path / "model.pt"))
    assert not again.training and torch.equal(again.score.weight, net.score.weight)
    result = load("predictor", tmp_path / "model.pt")(np.zeros((50, 60, 3), np.uint8))
    assert result.labels.shape == (50, 60)
