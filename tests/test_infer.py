"""Inference against a plain loop over proposals, the aggregation by hand, and what the release does otherwise."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
import yaml

from stages import infer, nets, scores, shards
from stages.cli import InputError
from stages.images import decode_mask
from stages.infer import Aggregate, Frame, Windows
from tests.conftest import jpeg

CPU = torch.device("cpu")
SIZE = {"width": 4, "fc_width": 16, "input_size": 64}
PARAMS = Windows(proposals=6, aggregation="maximum", clip=False, min_side=0, batch=5)


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


@pytest.mark.parametrize("aggregation", ["maximum", "average"])
@pytest.mark.parametrize("clip", [False, True])
def test_inference_equals_a_plain_loop(aggregation, clip):
    net, params = make_net(), dataclasses.replace(PARAMS, aggregation=aggregation, clip=clip)
    done = list(infer.by_windows(net, pictures(4), params, "float32"))
    assert len(done) == 4
    for (result, _), (image, windows) in zip(done, pictures(4), strict=True):
        np.testing.assert_allclose(result, plainly(net, image, windows[:6], params), atol=1e-4)
    assert not done[2][0].any()  # no proposals: background
    assert all(done[index][0].std() > 1e-3 for index in (0, 1, 3))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_batching_and_neighbours_change_nothing(batch):
    net = make_net()
    one = [result for result, _ in infer.by_windows(net, pictures(3), PARAMS, "float32")]
    params = dataclasses.replace(PARAMS, batch=batch)
    for result, (other, _) in zip(one, infer.by_windows(net, pictures(3), params, "float32"), strict=True):
        np.testing.assert_allclose(result, other, atol=1e-4)
    alone = [next(infer.by_windows(net, [picture], params, "float32"))[0] for picture in pictures(3)]
    for result, other in zip(one, alone, strict=True):
        np.testing.assert_allclose(result, other, atol=1e-4)


def test_images_without_windows_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(infer, "OPEN", 4)
    (first, windows), *_ = pictures(1)
    asked = 0

    def endless():
        nonlocal asked
        yield first, windows[:1]
        while True:
            asked += 1
            yield first, windows[:0]

    results = infer.by_windows(make_net(), endless(), PARAMS, "float32")
    assert next(results)[0].any()
    assert asked < 5


def test_growth_is_inference_with_fewer_proposals():
    net = make_net()
    ((result, grown),) = infer.by_windows(net, list(pictures(1)), PARAMS, "float32", growth=[1, 4, 9, 50])
    image, windows = next(pictures(1))
    for number, scores_then in zip([1, 4, 9, 50], grown, strict=True):
        np.testing.assert_allclose(scores_then, plainly(net, image, windows[:number], PARAMS), atol=1e-4)
    np.testing.assert_allclose(result, plainly(net, image, windows[:6], PARAMS), atol=1e-4)


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
    frame = Frame(context=1.2, square=False, canvas=(64, 64))
    params = dataclasses.replace(PARAMS, min_side=20)
    found = infer.select(boxes, params, frame, 2)
    np.testing.assert_array_equal(found, [[-4, -4, 48, 48], [-2, -2, 24, 24]])
    assert len(infer.select(boxes, PARAMS, frame, 9)) == 5
    assert infer.select(np.zeros((0, 4)), PARAMS, frame, 9).shape == (0, 4)


def test_whole_images_are_scored_at_the_top_left_of_the_canvas():
    net = make_net("fcn")
    for parameter in net.score_fc7.parameters():
        torch.nn.init.normal_(parameter)
    images = [image for image, _ in pictures(3)] + [np.full((90, 40, 3), 200, np.uint8)]
    results = list(infer.whole_images(net, images, (70, 72), 2, "float32"))
    for image, result in zip(images, results, strict=True):
        canvas = np.zeros((max(70, image.shape[0]), max(72, image.shape[1]), 3), np.float32)
        canvas[: image.shape[0], : image.shape[1]] = image
        with torch.no_grad():
            wanted = net(torch.from_numpy(canvas).permute(2, 0, 1)[None])[0, :, : image.shape[0], : image.shape[1]]
        assert result.std() > 0
        np.testing.assert_allclose(result, wanted, atol=1e-4)


@pytest.fixture
def shard(experiment):
    """An experiment with one shard of three images, its proposals, and both models."""
    rows = [(f"p{index}", image, windows) for index, (image, windows) in enumerate(pictures(3))]
    table = pa.table({"image_id": [name for name, *_ in rows], "image": [jpeg(image) for _, image, _ in rows]})
    shards.write("data/dataset/val-000.parquet", table)
    boxes = [
        {"image_id": name, "rank": rank, "x": x, "y": y, "width": w, "height": h, "objectness": 1 / rank}
        for name, _, windows in rows
        for rank, (x, y, w, h) in enumerate(windows.tolist(), 1)
    ]
    shards.write("data/proposals/val-000.parquet", pa.Table.from_pylist(boxes))
    for name, kind in (("deconvnet", "deconvnet"), ("fcn8s", "fcn")):
        net = make_net(kind)
        nets.save(f"data/models/{name}.pt", net.spec, net.state_dict(), {})
    return experiment


def call(system="deconvnet", *more):
    path = f"data/scores/{system}/val-000.parquet"
    infer.main(["--model", f"data/models/{system}.pt", "--dataset", "data/dataset/val-000.parquet",
                "--proposals", "data/proposals/val-000.parquet", "--out", path, *more])  # fmt: skip
    return shards.read(path).to_pylist()


def test_the_stage_writes_scores_that_labels_and_growth_agree_with(shard, capsys):
    rows = call("deconvnet", "--growth")
    assert [row["image_id"] for row in rows] == ["p0", "p1", "p2"]
    assert [row["windows"] for row in rows] == [9, 9, 0]
    assert "1 of 3 images have no proposal: all background" in capsys.readouterr().out
    assert not decode_mask(rows[2]["labels"]).any()
    growth = yaml.safe_load(open("params.yaml"))["infer"]["growth"]
    for row in rows:
        maps = scores.decode(row, 3)
        assert maps.shape == (3, row["height"], row["width"])
        np.testing.assert_array_equal(maps.argmax(0), decode_mask(row["labels"]))
        assert len(row["growth"]) == len(growth)
        assert row["growth"][growth.index(50)] == row["labels"]  # infer.deconvnet.proposals is 50
    assert all(row["windows"] is None and not row["growth"] for row in call("fcn8s"))


def test_same_inputs_same_bytes_and_a_fingerprint_of_what_matters(shard):
    path = shard / "data/scores/deconvnet/val-000.parquet"
    call()
    before = path.read_bytes()
    call()
    assert path.read_bytes() == before
    params, frame = infer.load(infer.Params, "infer"), infer.frame()
    paths = [infer.Path(f"data/{name}") for name in ("dataset/val-000.parquet", "proposals/val-000.parquet",
                                                     "models/deconvnet.pt")]  # fmt: skip
    mark = infer.fingerprint(*paths, False, params, frame)
    assert shards.footer(path)["fingerprint"] == mark
    bigger = dataclasses.replace(params, fcn_batch=99, deconvnet=dataclasses.replace(params.deconvnet, batch=99))
    assert infer.fingerprint(*paths, False, bigger, frame) == mark
    fewer = dataclasses.replace(params, deconvnet=dataclasses.replace(params.deconvnet, proposals=10))
    assert infer.fingerprint(*paths, False, fewer, frame) != mark
    assert infer.fingerprint(paths[0], None, paths[2], False, fewer, frame) == infer.fingerprint(
        paths[0], None, paths[2], False, params, frame
    )  # FCN-8s sees no proposals


def test_one_shard_or_two_change_nothing(shard):
    params = yaml.safe_load(open("params.yaml"))
    params["infer"]["precision"] = "float32"
    (shard / "params.yaml").write_text(yaml.safe_dump(params))
    whole = call()
    tables = {name: shards.read(f"data/{name}/val-000.parquet") for name in ("dataset", "proposals")}
    parts = []
    for ids in (["p0"], ["p1", "p2"]):
        for name, table in tables.items():
            shards.write(f"data/{name}/val-000.parquet", table.filter(pc.is_in(table["image_id"], pa.array(ids))))
        parts += call()
    for one, two in zip(whole, parts, strict=True):
        assert one["labels"] == two["labels"]
        np.testing.assert_allclose(scores.decode(one, 3), scores.decode(two, 3), atol=1e-2)  # a step of the storage


def test_a_model_of_other_classes_is_refused(shard):
    params = yaml.safe_load(open("params.yaml"))
    params["dataset"]["classes"].append("three")
    (shard / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match="data/models/deconvnet.pt: scores 3 classes, but dataset.classes in params"):
        call()


def test_a_picture_that_does_not_decode_is_named(shard):
    table = shards.read("data/dataset/val-000.parquet").to_pylist()
    table[1]["image"] = table[1]["image"][:200]
    shards.write("data/dataset/val-000.parquet", pa.Table.from_pylist(table))
    with pytest.raises(InputError, match="val-000.parquet: p1: does not decode"):
        call()
    assert not (shard / "data/scores/deconvnet").exists() or not list((shard / "data/scores/deconvnet").iterdir())


def test_jobs_at_once_take_a_gpu_each(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(infer.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(infer, "LOCKS", [])
    assert [infer.own_device().index for _ in range(2)] == [0, 1]
    assert infer.own_device().index in (0, 1)  # more jobs than GPUs share them
    infer.LOCKS[0].close()  # as when the first job ends
    assert infer.own_device().index == 0
