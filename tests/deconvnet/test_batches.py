"""Crop batches against a plain reference, crop by crop."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from deconvnet import tables
from deconvnet.batches import Batches, held_out
from deconvnet.errors import InputError
from deconvnet.images import VOID, encode_mask
from deconvnet.nets.vgg import VGG16
from deconvnet.pixels import ImageStore, cut
from deconvnet.settings import Size
from tests.world import CPU, crop_table, write_dataset


def reference(image, classes, instances, window, instance, resized, corner, size, flip):
    """One crop: pad, slice, resize, slice, mirror."""
    x, y, side_x, side_y = window
    height, width = classes.shape
    pad = 200
    image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    classes, instances = (np.pad(mask, pad, constant_values=fill) for mask, fill in ((classes, VOID), (instances, 0)))
    part = np.s_[y + pad : y + pad + side_y, x + pad : x + pad + side_x]
    labels = classes[part]
    if instance is not None:
        labels = np.where(instances[part] == instance, labels, 0)
        labels[classes[part] == VOID] = VOID
    crop = torch.from_numpy(image[part]).permute(2, 0, 1)[None].float()
    crop = F.interpolate(crop, resized, mode="bilinear", align_corners=False)[0]
    labels = F.interpolate(torch.from_numpy(labels)[None, None].float(), resized, mode="nearest-exact")[0, 0].byte()
    inside = np.s_[..., corner[1] : corner[1] + size[0], corner[0] : corner[0] + size[1]]
    crop, labels = crop[inside], labels[inside]
    return (crop.flip(-1), labels.flip(-1)) if flip else (crop, labels)


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("resized, size", [((72, 72), (64, 64)), ((250, 250), (224, 224)), ((50, 70), (50, 70))])
def test_cut_equals_the_plain_reference(tmp_path, isolate, resized, size):
    rows = write_dataset(tmp_path, images=3)
    store = ImageStore(tmp_path, {row["image_id"] for row in rows}, 4, 1.0, CPU)
    random = np.random.default_rng(0)
    count = 24
    images = random.integers(0, 3, count)
    # whole, inside, beyond every edge, entirely outside, one pixel wide
    windows = np.concatenate([random.integers(-60, 90, (count, 2)), random.integers(1, 130, (count, 2))], 1)
    windows[:3] = [0, 0, 60, 50], [-150, 5, 40, 40], [10, 10, 1, 1]
    corners = random.integers(0, np.subtract(resized, size)[::-1] + 1, (count, 2))
    flips, instances = random.random(count) < 0.5, random.integers(1, 3, count)
    crops, labels = cut(
        store.pixels, torch.from_numpy(images), torch.from_numpy(windows), resized, torch.from_numpy(corners), size,
        torch.from_numpy(flips), torch.from_numpy(instances) if isolate else None,
    )  # fmt: skip
    assert crops.shape == (count, 3, *size) and labels.dtype == torch.uint8
    for i in range(count):
        row = rows[images[i]]
        expected = reference(
            row["pixels"],
            row["classes"],
            row["instances"],
            windows[i],
            instances[i] if isolate else None,
            resized,
            corners[i],
            size,
            flips[i],
        )
        assert torch.equal(labels[i], expected[1]), i
        torch.testing.assert_close(crops[i], expected[0], rtol=0, atol=2e-3)
    assert (labels == VOID).any() and (labels == 1).any()


def test_whole_image_is_untouched(tmp_path):
    row = write_dataset(tmp_path, images=1)[0]
    store = ImageStore(tmp_path, {row["image_id"]}, 4, 1.0, CPU)
    height, width = row["classes"].shape
    zero = torch.zeros(1, 2, dtype=torch.int64)
    canvas = height + 6, width + 9
    crops, labels = cut(
        store.pixels,
        zero[:, 0],
        torch.tensor([[0, 0, canvas[1], canvas[0]]]),
        canvas,
        zero,
        canvas,
        torch.tensor([False]),
    )
    assert torch.equal(crops[0, :, :height, :width].byte(), torch.from_numpy(row["pixels"].copy()).permute(2, 0, 1))
    assert torch.equal(labels[0, :height, :width], torch.from_numpy(row["classes"].copy()))
    assert not crops[0, :, height:].any() and (labels[0, :, width:] == VOID).all()


@pytest.mark.parametrize("resized", [(72, 72), (50, 70)])
def test_outside_of_the_image_lies_the_given_colour(tmp_path, resized):
    """Against the plain reference on an image that is this colour outside."""
    row = write_dataset(tmp_path, images=1)[0]
    store = ImageStore(tmp_path, {row["image_id"]}, 4, 1.0, CPU)
    height, width = row["classes"].shape
    window = torch.tensor([[-15, 10, width + 40, height]])
    zero, no = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([False])
    fill = torch.tensor([103.25, 7.5, 200.125])
    crops, _ = cut(store.pixels, zero[:, 0], window, resized, zero, resized, no, None, fill)
    picture = torch.from_numpy(row["pixels"].copy()).permute(2, 0, 1).float()
    padded = fill[:, None, None].expand(3, height + 10, width + 40).clone()
    padded[:, :height, 15 : 15 + width] = picture
    expected = F.interpolate(padded[None, :, 10:], resized, mode="bilinear", align_corners=False)
    torch.testing.assert_close(crops, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("mirrored", [False, True])
def test_whole_images_lie_at_the_top_left_of_the_mean_colour(tmp_path, mirrored):
    """The band at the right and the bottom is exactly 0 after normalisation, and void, mirrored or not."""
    rows = write_dataset(tmp_path, images=6)
    ids = [row["image_id"] for row in rows]
    table = pd.DataFrame({"image_id": ids, "x": 0, "y": 0, "side_x": 100, "side_y": 95, "instance": 0, "class_id": 0})
    encoder = VGG16(Size(4, 16, 64), None)
    encoder.set_convention("caffe_bgr")
    store = ImageStore(tmp_path, set(ids), 4, 1.0, CPU)
    source = Batches(
        store, table.assign(copies=1), "scene", (95, 100), (95, 100), True, 0, 0, 0, CPU, encoder.mean.tolist(), True
    )
    numbers = np.arange(6)
    crops, labels = source._make(numbers, np.zeros((6, 2), np.int64), np.full(6, mirrored))
    for crop, label, number in zip(encoder.normalise(crops), labels, source.table[numbers, 0].tolist(), strict=True):
        row = rows[ids.index(store.ids[number])]
        height, width = row["classes"].shape
        picture, classes = row["pixels"], row["classes"]
        if mirrored:
            picture, classes = picture[:, ::-1], classes[:, ::-1]
        expected = encoder.normalise(torch.from_numpy(picture.copy()).permute(2, 0, 1))
        assert torch.equal(crop[:, :height, :width], expected)
        assert torch.equal(label[:height, :width], torch.from_numpy(classes.copy()))
        assert (crop[:, height:] == 0).all() and (crop[:, :, width:] == 0).all()
        assert (label[height:] == VOID).all() and (label[:, width:] == VOID).all()


def batches(tmp_path, memory_gb=1.0, labels="scene", seed=1):
    table = crop_table(write_dataset(tmp_path, images=12))
    store = ImageStore(tmp_path, set(table["image_id"]), 4, memory_gb, CPU)
    return Batches(store, table, labels, (72, 72), (64, 64), True, seed, 0.25, 100, CPU), table


def test_decoding_on_demand_gives_the_same(tmp_path, capsys):
    fast, _ = batches(tmp_path)
    slow, _ = batches(tmp_path, memory_gb=0.0)
    assert "decoding for every batch" in capsys.readouterr().out
    for step in (0, 7):
        for expected, found in zip(fast.train(step, 8, slice(None)), slow.train(step, 8, slice(None)), strict=True):
            assert torch.equal(expected, found)


def test_an_epoch_holds_every_copy_once_and_no_held_out_image(tmp_path):
    source, table = batches(tmp_path)
    kept = held_out(table["image_id"], 0.25)
    assert 0 < kept.sum() < len(table)
    assert kept.tolist() == held_out(table["image_id"], 0.25).tolist()
    epoch = len(source.train_rows)
    for start in (0, epoch):
        rows = [source._row(number) for number in range(start, start + epoch)]
        counts = np.bincount(rows, minlength=len(table))
        assert (counts == np.where(kept, 0, table["copies"])).all()
    assert kept[source.validation_rows].all()
    assert [source._row(n) for n in range(epoch)] != [source._row(n) for n in range(epoch, 2 * epoch)]


def test_held_out_windows_are_there_once_and_spread_over_the_classes(tmp_path):
    rows = write_dataset(tmp_path / "dataset", 12)
    table = crop_table(rows).assign(copies=50)
    store = ImageStore(tmp_path / "dataset", set(table["image_id"]), 4, 1.0, CPU)
    kept = held_out(table["image_id"], 0.5)
    counts = table[kept]["class_id"].value_counts()
    least = counts.min()

    def chosen(limit):
        found = Batches(store, table, "scene", (72, 72), (64, 64), True, 1, 0.5, limit, CPU).validation_rows
        assert len(set(found)) == len(found) and kept[found].all()
        return table.iloc[found]["class_id"].value_counts()

    assert chosen(10_000).to_dict() == counts.to_dict()
    assert set(chosen(len(counts) * least)) == {least}  # equally many of each
    few = chosen(len(counts) + 1)
    assert few.sum() == len(counts) + 1 and set(few) == {1, 2}


def test_parts_of_a_batch_are_the_batch(tmp_path):
    source, _ = batches(tmp_path)
    whole = source.train(3, 8, slice(None))
    parts = [source.train(3, 8, slice(start, start + 2)) for start in (0, 2, 4, 6)]
    for index in (0, 1):
        assert torch.equal(whole[index], torch.cat([part[index] for part in parts]))
    assert not torch.equal(whole[0], source.train(4, 8, slice(None))[0])


def test_class_labels(tmp_path):
    source, table = batches(tmp_path, labels="class")
    assert set(source.train(0, 32, slice(None))[1].tolist()) <= set(table["class_id"])


def test_unknown_image(tmp_path):
    write_dataset(tmp_path, images=1)
    with pytest.raises(InputError, match="lacks 1 images that the crop table names, such as 2012_999999"):
        ImageStore(tmp_path, {"2012_999999"}, 4, 1.0, CPU)


def test_wrong_label(tmp_path):
    rows = write_dataset(tmp_path, images=1)
    with pytest.raises(InputError, match=r"2012_000000: label 3 in the class mask; allowed: 0 to 2 and 255"):
        ImageStore(tmp_path, {rows[0]["image_id"]}, 3, 1.0, CPU)


def test_masks_of_another_size(tmp_path):
    write_dataset(tmp_path, images=1)
    path = next(tmp_path.glob("*.parquet"))
    table = tables.read(path).to_pandas()
    table["class_mask"] = [encode_mask(np.zeros((4, 4), np.uint8))]
    tables.write(path, pa.Table.from_pandas(table, preserve_index=False))
    with pytest.raises(InputError, match="differ in size"):
        ImageStore(tmp_path, set(table["image_id"]), 4, 1.0, CPU)


def test_nothing_held_out(tmp_path):
    """held_out 0: every crop is trained on, and none is there to validate on."""
    table = crop_table(write_dataset(tmp_path, images=4))
    store = ImageStore(tmp_path, set(table["image_id"]), 4, 1.0, CPU)
    source = Batches(store, table, "scene", (72, 72), (64, 64), True, 0, 0.0, 10, CPU)
    assert len(source.train_rows) == table["copies"].sum() and len(source.validation_rows) == 0


def test_nothing_to_validate_on(tmp_path):
    table = crop_table(write_dataset(tmp_path, images=2))
    store = ImageStore(tmp_path, set(table["image_id"]), 4, 1.0, CPU)
    with pytest.raises(InputError, match="leaves no crops"):
        Batches(store, pd.DataFrame(table), "scene", (72, 72), (64, 64), True, 0, 1e-6, 10, CPU)
