"""What `import deconvnet` offers: its examples run, and `predict` is the net's own softmax."""

import doctest
import importlib
import inspect

import cv2
import numpy as np
import pytest
import torch

import deconvnet
from tests.deconvnet.test_folding import trained


@pytest.mark.parametrize("name", ["deconvnet", "deconvnet.pooling"])
def test_the_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted >= 5 and not found.failed


def test_every_name_is_documented():
    for name in deconvnet.__all__:
        assert inspect.getdoc(getattr(deconvnet, name)), name
        assert name in deconvnet.__doc__, name


@pytest.mark.parametrize("kind", ["deconvnet", "fcn"])
def test_predict_is_the_softmax_of_the_net_s_scores(kind):
    net = trained(kind).train()
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    found = deconvnet.predict(net, image)
    assert net.training
    net.eval()

    def scores(picture):
        with torch.no_grad():
            return net(torch.from_numpy(picture).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0).numpy()

    if kind == "fcn":
        wanted = scores(image)
    else:
        wanted = cv2.resize(scores(cv2.resize(image.astype(np.float32), (64, 64))), (96, 80))
    wanted = torch.from_numpy(wanted).softmax(2).permute(2, 0, 1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert found.std() > 1e-3
