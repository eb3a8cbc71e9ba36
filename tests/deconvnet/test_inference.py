"""Inference against a plain loop over proposals, the aggregation by hand, and what the release does otherwise."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deconvnet import nets
from deconvnet.errors import InputError
from deconvnet.inference import devices
from deconvnet.inference import windows as windows_module
from deconvnet.inference.aggregate import Aggregate
from deconvnet.inference.models import check_classes
from deconvnet.inference.whole_images import by_images
from deconvnet.inference.windows import by_windows, cut_windows, four_bytes, gather_windows, select
from deconvnet.settings import WindowInference

CPU = torch.device("cpu")
SIZE = {"width": 4, "fc_width": 16, "input_size": 64}
PARAMS = WindowInference(proposals=6, aggregation="maximum", clip=False, min_side=0, batch=5)


def make_net(kind="deconvnet", classes=3, seed=0):
    torch.manual_seed(seed)
    more = {"stride": 8, "skip_scales": [1.0, 1.0], "dropout": 0.5} if kind == "fcn" else {}
    net = nets.build({"kind": kind, "size": SIZE, "classes": classes, "eps": 1e-5, **more})
    for parameter in net.parameters():  # louder than training's start, so that scores differ from 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.eval()


def pictures(count, seed=0):
    """Images of several sizes and their windows, some beyond the border; the third has none."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = rng.integers(40, 70, 2)
        corner = rng.integers(-20, 40, (9 if number != 2 else 0, 2))
        sides = rng.integers(12, 60, (len(corner), 2))
        yield rng.integers(0, 256, (height, width, 3), np.uint8), np.concatenate([corner, sides], 1).astype(np.int32)


def plainly(net, image, windows, params):
    """The paper's words: one window at a time, padded, resized, scored, resized back, zero elsewhere, aggregated."""
    height, width = image.shape[:2]
    border = 100  # px of black all around: every window lies within
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    maps = np.zeros((len(windows) + 1, net.spec["classes"], height, width), np.float32)
    for index, (x, y, w, h) in enumerate(windows.tolist()):
        crop = torch.from_numpy(padded[border + y : border + y + h, border + x : border + x + w].copy())
        with torch.no_grad():
            out = net(F.interpolate(crop.permute(2, 0, 1)[None].float(), (64, 64), mode="bilinear"))
        out = F.interpolate(out, (h, w), mode="bilinear")[0].numpy()
        full = np.zeros((len(out), *padded.shape[:2]), np.float32)
        full[:, border + y : border + y + h, border + x : border + x + w] = out.clip(min=0) if params.clip else out
        maps[index] = full[:, border:-border, border:-border]
    if params.aggregation == "average":
        return maps.sum(0) / max(len(windows), 1)
    return maps[: max(len(windows), 1)].max(0)


def test_whole_images_at_half_their_size():
    """The net sees a quarter of the pixels, and its scores come back interpolated, at the image's size."""
    seen = []

    class Copy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.register_buffer("mean", torch.tensor([10.0, 20.0, 30.0]))
            self.factor = torch.nn.Parameter(torch.ones(1))

        def forward(self, images):
            seen.append(images.clone())
            return images * self.factor

    ramp = np.tile(np.arange(0, 80, 2, dtype=np.uint8)[None, :, None], (30, 1, 3))  # (30, 40, 3)
    (maps,) = by_images(Copy(), [ramp], (50, 60), 1, "float32", scale=0.5)
    assert seen[0].shape == (1, 3, 25, 30) and seen[0][0, :, 20, 25].tolist() == [10, 20, 30]
    assert maps.shape == (3, 30, 40)
    inner = maps[:, :, 2:-2].numpy()
    np.testing.assert_allclose(inner, np.broadcast_to(ramp[:, 2:-2].transpose(2, 0, 1), inner.shape), atol=1.1)


@pytest.mark.parametrize("aggregation", ["maximum", "average"])
@pytest.mark.parametrize("clip", [False, True])
def test_inference_equals_a_plain_loop(aggregation, clip):
    net, params = make_net(), dataclasses.replace(PARAMS, aggregation=aggregation, clip=clip)
    done = list(by_windows(net, pictures(4), params, "float32"))
    assert len(done) == 4
    for (result, _), (image, windows) in zip(done, pictures(4), strict=True):
        np.testing.assert_allclose(result, plainly(net, image, windows[:6], params), atol=1e-4)
    assert not done[2][0].any()  # no proposals: background
    assert all(done[index][0].std() > 1e-3 for index in (0, 1, 3))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_batching_and_neighbours_change_nothing(batch):
    net = make_net()
    one = [result for result, _ in by_windows(net, pictures(3), PARAMS, "float32")]
    params = dataclasses.replace(PARAMS, batch=batch)
    for result, (other, _) in zip(one, by_windows(net, pictures(3), params, "float32"), strict=True):
        np.testing.assert_allclose(result, other, atol=1e-4)
    alone = [next(by_windows(net, [picture], params, "float32"))[0] for picture in pictures(3)]
    for result, other in zip(one, alone, strict=True):
        np.testing.assert_allclose(result, other, atol=1e-4)


def test_images_without_windows_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(windows_module, "OPEN", 4)
    (first, windows), *_ = pictures(1)
    asked = 0

    def endless():
        nonlocal asked
        yield first, windows[:1]
        while True:
            asked += 1
            yield first, windows[:0]

    results = by_windows(make_net(), endless(), PARAMS, "float32")
    assert next(results)[0].any()
    assert asked < 5


def test_growth_is_inference_with_fewer_proposals():
    net = make_net()
    ((result, grown),) = by_windows(net, list(pictures(1)), PARAMS, "float32", growth=[1, 4, 9, 50])
    image, windows = next(pictures(1))
    for number, labels in zip([1, 4, 9, 50], grown, strict=True):
        plain = plainly(net, image, windows[:number], PARAMS)
        chosen = np.take_along_axis(plain, labels.numpy()[None].astype(int), 0)[0]
        np.testing.assert_allclose(chosen, plain.max(0), atol=1e-4)
    assert len({labels.numpy().tobytes() for labels in grown}) == 3  # there are 9 windows
    np.testing.assert_allclose(result, plainly(net, image, windows[:6], PARAMS), atol=1e-4)


def test_the_two_ways_to_cut_windows_agree():
    images, places = zip(*((image, window) for image, windows in pictures(4) for window in windows), strict=True)
    places = np.array([*places, [500, 500, 9, 9], [-7, 3, 128, 128], [0, 0, 64, 64], [0, 5, 1, 1]], np.int32)
    images += images[:1] * 4
    fast = cut_windows(list(images), places, (64, 96))
    shared = {id(image): torch.from_numpy(four_bytes(image)) for image in images}
    gathered = gather_windows([shared[id(image)] for image in images], places, (64, 96))
    assert fast.shape == (31, 3, 64, 96) and fast.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast, gathered, rtol=0, atol=5e-3)  # of 255
    assert not fast[27].any()  # beyond the border: black


@pytest.mark.parametrize("aggregation", ["maximum", "average"])
@pytest.mark.parametrize("clip", [False, True])
def test_numpy_and_pytorch_aggregate_the_same(aggregation, clip):
    params = dataclasses.replace(PARAMS, aggregation=aggregation, clip=clip)
    fast, plain = (Aggregate(3, 60, 50, params, CPU) for _ in range(2))
    plain.array = None  # as on a GPU
    rng = np.random.default_rng(0)
    for _ in range(12):
        score_map = torch.from_numpy(rng.normal(size=(3, 16, 16)).astype(np.float32))
        window = (*rng.integers(-40, 10, 2).tolist(), *rng.integers(45, 90, 2).tolist())
        for aggregate in (fast, plain):
            aggregate.add(score_map, window)
        torch.testing.assert_close(fast.scores(), plain.scores(), rtol=0, atol=1e-5)
        assert torch.equal(fast.labels(), fast.scores().argmax(0))
    assert fast.scores().std() > 0.1


def test_the_canvas_around_an_image_is_exactly_zero_after_normalisation():
    net, seen = make_net("fcn"), []
    net.encoder.conv1_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    list(by_images(net, [np.full((50, 40, 3), 255, np.uint8)], (64, 70), 1, "float32"))
    (normalised,) = seen
    around = (normalised.shape[2] - 64) // 2  # what FCN-8s itself pads
    inside = normalised[0, :, around : around + 50, around : around + 40]
    assert (inside > 2).all() and int((normalised != 0).sum()) == inside.numel()


def aggregated(params, *maps):
    """Constant score maps of one class, each with its window, in an image of 1 x 4 px."""
    aggregate = Aggregate(1, 1, 4, params, CPU)
    for value, (x, side) in maps:
        aggregate.add(torch.full((1, 8, 8), float(value)), (x, 0, side, 1))
    return aggregate.scores()[0, 0].tolist()


def test_maximum_by_hand():
    # windows over columns 0-1, 1-2 and, beyond the border, 2-5; outside of a window it counts as 0
    maps = [(-2, (0, 2)), (3, (1, 2)), (-1, (2, 4))]
    assert aggregated(PARAMS, *maps) == [0, 3, 3, 0]
    assert aggregated(PARAMS, (-2, (0, 2)), (-3, (0, 4))) == [-2, -2, 0, 0]  # where every window reaches, no 0
    assert aggregated(dataclasses.replace(PARAMS, clip=True), (-2, (0, 2)), (-3, (0, 4))) == [0, 0, 0, 0]
    assert aggregated(PARAMS, (5, (9, 3))) == [0, 0, 0, 0]  # outside of the image altogether


def test_average_by_hand():
    average = dataclasses.replace(PARAMS, aggregation="average")
    maps = [(-2, (0, 2)), (4, (1, 3))]
    assert aggregated(average, *maps) == [-1, 1, 2, 2]
    assert aggregated(dataclasses.replace(average, clip=True), *maps) == [0, 2, 2, 2]


def test_small_windows_are_passed_over_before_the_best_are_taken():
    boxes = np.float32([[0, 0, 50, 10], [0, 0, 40, 40], [5, 5, 8, 60], [0, 0, 20, 20], [9, 9, 30, 30]])
    found = select(boxes, 1.2, False, min_side=20, number=2)
    np.testing.assert_array_equal(found, [[-4, -4, 48, 48], [-2, -2, 24, 24]])
    assert len(select(boxes, 1.2, False, 0, 9)) == 5
    assert select(np.zeros((0, 4)), 1.2, True, 0, 9).shape == (0, 4)


def test_whole_images_are_scored_at_the_top_left_of_the_canvas():
    net = make_net("fcn")
    for parameter in net.score_fc7.parameters():
        torch.nn.init.normal_(parameter)
    images = [image for image, _ in pictures(3)] + [np.full((90, 40, 3), 200, np.uint8)]
    results = list(by_images(net, images, (70, 72), 2, "float32"))
    for image, result in zip(images, results, strict=True):
        canvas = np.empty((max(70, image.shape[0]), max(72, image.shape[1]), 3), np.float32)
        canvas[:] = [123.675, 116.28, 103.53]  # ImageNet's mean colour, which the weights' normalisation subtracts
        canvas[: image.shape[0], : image.shape[1]] = image
        with torch.no_grad():
            wanted = net(torch.from_numpy(canvas).permute(2, 0, 1)[None])[0, :, : image.shape[0], : image.shape[1]]
        assert result.std() > 0
        np.testing.assert_allclose(result, wanted, atol=1e-4)


def test_jobs_at_once_take_a_gpu_each(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(devices, "_locks", [])
    assert [devices.own_device().index for _ in range(2)] == [0, 1]
    assert devices.own_device().index in (0, 1)  # more jobs than GPUs share them
    devices._locks[0].close()  # as when the first job ends
    assert devices.own_device().index == 0


@pytest.mark.parametrize("precision, dtype, tf32", [("bf16", torch.bfloat16, True), ("float32", torch.float32, False)])
def test_float32_is_no_tf32(precision, dtype, tf32):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with devices.arithmetic(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_a_models_classes_are_compared_by_number_and_by_name():
    net, names = make_net(), ["background", "cat", "dog"]
    check_classes("m.pt", net, {"classes": names}, tuple(names), "params")
    check_classes("m.pt", net, {}, names, "params")  # a model that names none
    with pytest.raises(InputError, match="m.pt: scores 3 classes, not the 2 of params; train again"):
        check_classes("m.pt", net, {"classes": names}, names[:2], "params; train again")
    with pytest.raises(InputError, match="m.pt: class 1 is 'cat', not 'dog' as in params"):
        check_classes("m.pt", net, {"classes": names}, ["background", "dog", "cat"], "params")
