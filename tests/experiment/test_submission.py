"""The evaluation server's archive: its members, its bytes, what it refuses."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from deconvnet import scores, tables
from deconvnet.errors import InputError
from deconvnet.images import PALETTE, VOC_CLASSES, encode_mask
from experiment import submission

SIZES = {"2008_000001": (5, 7), "2008_000003": (6, 4), "2008_000010": (3, 3)}  # height, width


def masks():
    random = np.random.default_rng(0)
    return {image_id: random.integers(0, 21, size).astype(np.uint8) for image_id, size in SIZES.items()}


def write(experiment, found=None, split="test", shard=2):
    """A data set of SIZES and labels `found` for it, in shards of two."""
    found = found or masks()
    for start in range(0, len(SIZES), shard):
        ids = list(SIZES)[start : start + shard]
        name = f"{split}-{start // shard:03d}.parquet"
        heights, widths = zip(*(SIZES[image_id] for image_id in ids), strict=True)
        for folder in ("dataset", "labels"):
            (experiment / folder).mkdir(exist_ok=True)
        tables.write(experiment / "dataset" / name, pa.table({"image_id": ids, "height": heights, "width": widths}))
        labels = [found[i] if isinstance(found[i], bytes) else encode_mask(found[i]) for i in ids]
        tables.write(experiment / "labels" / name, pa.table({"image_id": ids, "labels": labels}, scores.LABELS_SCHEMA))


@pytest.fixture
def voc(experiment):
    params = yaml.safe_load((experiment / "params.yaml").read_text())
    params["dataset"]["classes"] = list(VOC_CLASSES)
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    return experiment


def submit(*options):
    submission.main(["--labels", "labels", "--dataset", "dataset", "--out", "comp6.tgz", *options])


def test_classes_are_vocs():
    assert len(VOC_CLASSES) == 21
    assert [VOC_CLASSES[number] for number in (0, 1, 11, 15, 20)] == [
        "background", "aeroplane", "diningtable", "person", "tvmonitor",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, split, folder",
    [
        ([], "test", "comp6_test_cls"),
        (["--competition", "comp5"], "test", "comp5_test_cls"),
        (["--split", "val"], "val", "comp6_val_cls"),
    ],
)
def test_members(voc, options, split, folder, capsys):
    write(voc, split=split)
    submit(*options)
    with tarfile.open(voc / "comp6.tgz", "r:gz") as archive:
        names = [f"results/VOC2012/Segmentation/{folder}/{image_id}.png" for image_id in SIZES]
        assert archive.getnames() == names
        for name, mask in zip(names, masks().values(), strict=True):
            image = Image.open(archive.extractfile(name))
            assert (image.format, image.mode, image.getpalette()) == ("PNG", "P", PALETTE.ravel().tolist())
            assert np.array_equal(np.asarray(image), mask)
        assert all(member.isfile() and member.mtime == 0 for member in archive)
    assert f"comp6.tgz: 3 images in results/VOC2012/Segmentation/{folder}/" in capsys.readouterr().out


def test_equal_labels_give_equal_bytes(voc):
    """However the PNGs were written and the shards cut; scores serve as well as labels."""
    write(voc)
    submit()
    before = (voc / "comp6.tgz").read_bytes()
    assert before[4:8] == bytes(4)  # gzip's time
    for path in voc.glob("*/*.parquet"):
        path.unlink()
    plain = {}
    for image_id, mask in masks().items():
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG", optimize=True)  # grey, without a palette
        plain[image_id] = buffer.getvalue()
    write(voc, plain, shard=3)
    submit("--out", "other.tgz")
    assert (voc / "other.tgz").read_bytes() == before
    rows = [{"image_id": i} | scores.encode(np.eye(21, dtype=np.float32)[m].transpose(2, 0, 1))
            for i, m in masks().items()]  # fmt: skip
    tables.write(voc / "scores/test-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    submit("--labels", "scores", "--out", "scores.tgz")
    assert (voc / "scores.tgz").read_bytes() == before


def refused(folder, message, *options):
    with pytest.raises(InputError) as error:
        submit(*options)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(folder.glob("*.tgz")) and not list(folder.glob(".*.tmp"))


def test_no_such_split(voc):
    write(voc, split="val")
    refused(voc, "dataset: no test images; give fetch.voc_test an address, add test to infer.splits in params.yaml")
    for path in voc.glob("*/*.parquet"):
        path.unlink()
    refused(voc, "dataset: no val images; add val to infer.splits", "--split", "val")


def test_shards_and_images_must_be_the_data_sets(voc):
    write(voc)
    (voc / "labels/test-001.parquet").rename(voc / "labels/test-002.parquet")
    refused(voc, "labels/test-001.parquet: missing shard; add test to infer.splits")
    write(voc)
    refused(voc, "labels/test-002.parquet: not in dataset; delete it")
    (voc / "labels/test-002.parquet").unlink()
    rows = tables.read(voc / "labels/test-000.parquet")
    tables.write(voc / "labels/test-000.parquet", rows.slice(1))
    refused(voc, "labels/test-000.parquet: 1 images that are not the 2 of dataset/test-000.parquet; run `dvc repro`")
    tables.write(voc / "labels/test-000.parquet", rows)
    for folder in ("dataset", "labels"):
        (voc / folder / "test-002.parquet").write_bytes((voc / folder / "test-000.parquet").read_bytes())
    refused(voc, "dataset/test-002.parquet: 2008_000001 is in an earlier shard, too; run `dvc repro dataset`")
    refused(voc, "missing shard", "--labels", "nowhere")


@pytest.mark.parametrize(
    "change, message",
    [
        (np.zeros((4, 6), np.uint8), "2008_000003.png: labels of 6x4 px, but the image has 4x6 px; run `dvc repro`"),
        (np.full((6, 4), 21, np.uint8), "2008_000003.png: label 21, but the server knows 0 to 20; run `dvc repro`"),
        (np.full((6, 4), 255, np.uint8), "2008_000003.png: label 255, but the server knows"),
        (b"junk", "labels/test-000.parquet: 2008_000003: does not decode"),
    ],
)
def test_labels_that_the_server_would_not_take(voc, change, message):
    write(voc, masks() | {"2008_000003": change})
    refused(voc, message)


def test_a_table_without_labels(voc):
    write(voc)
    refused(
        voc,
        "dataset/test-000.parquet: not a readable parquet file (lacks the column labels)",
        "--labels",
        "dataset",
    )


def test_other_classes(experiment):
    write(experiment)
    refused(experiment, "params.yaml: dataset.classes: not VOC's 21 in their order; the server takes no others")


def test_a_folder_is_not_overwritten(voc):
    write(voc)
    refused(voc, "labels: a folder; name the archive to write as --out", "--out", "labels")
    assert (voc / "labels/test-000.parquet").is_file()


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.png": encode_mask(np.zeros((2, 3), np.uint8))}, "1 members that are not the 2 wanted"),
        ({"b.png": b"", "a.png": b""}, "2 members that are not the 2 wanted"),
        (dict.fromkeys(["a.png", "b.png"], "grey"), "a.png: not a PNG in VOC's palette"),
    ],
)
def test_the_written_archive_is_checked(members, message, tmp_path):
    grey = io.BytesIO()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(grey, "PNG")
    members = {name: grey.getvalue() if data == "grey" else data for name, data in members.items()}
    submission.pack(tmp_path / "a.tgz", members)
    with pytest.raises(InputError, match=message):
        submission.check(tmp_path / "a.tgz", {"a.png": (2, 3), "b.png": (2, 3)})
