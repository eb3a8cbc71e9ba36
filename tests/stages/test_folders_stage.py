"""The data set of images and masks in folders: stages `folders` and `dataset`."""

import numpy as np
import pytest
import yaml
from PIL import Image

from deconvnet import tables
from deconvnet.errors import InputError
from deconvnet.files import file_hash
from experiment import params as parameters
from stages import dataset, folders
from tests.conftest import draw


@pytest.fixture
def own(experiment):
    """Three images in folders, a and b in train and c in val, and a parameter file for them."""
    for name in ("images", "masks", "objects"):
        (experiment / "own" / name).mkdir(parents=True)
    for seed, name in enumerate("abc"):
        for folder, array in zip(("images", "masks", "objects"), draw(seed), strict=True):
            Image.fromarray(array).save(experiment / f"own/{folder}/{name}.png")
    (experiment / "train.txt").write_text("a\nb\n")
    (experiment / "val.txt").write_text("c\n")
    for name in ("sbd.tgz", "test.tar"):
        (experiment / name).touch()
    change({"kind": "folders"}, images="own/images", masks="own/masks", train="train.txt", val="val.txt")
    return experiment


def change(settings=None, **places):
    params = yaml.safe_load(open("params.yaml"))
    params["dataset"] |= settings or {}
    params["folders"] |= places
    with open("params.yaml", "w") as file:
        yaml.safe_dump(params, file)


def build():
    for key in parameters.load().folders:
        folders.main([key, "--out", f"data/folders/{key}.sha256"])
    return make()


def make():
    dataset.main(["--input", "data/folders", "--sbd", "sbd.tgz", "--test", "test.tar", "--out", "out"])
    return {path.name: tables.read(path).to_pylist() for path in sorted((parameters.Path("out")).iterdir())}


def test_lists_are_those_of_sha256sum(own):
    folders.main(["images", "--out", "data/folders/images.sha256"])
    lines = [f"{file_hash(own / f'own/images/{name}.png')}  {name}.png" for name in "abc"]
    assert (own / "data/folders/images.sha256").read_text().splitlines() == lines
    folders.main(["train", "--out", "train.sha256"])
    assert (own / "train.sha256").read_text() == f"{file_hash('train.txt')}  train.txt\n"


def test_the_data_set(own, capsys):
    built = build()
    assert capsys.readouterr().out.splitlines()[-1] == "out: 2 trainaug, 1 val images in 2 shards"
    assert {name: [row["image_id"] for row in rows] for name, rows in built.items()} == {
        "train-000.parquet": ["a", "b"], "val-000.parquet": ["c"]
    }  # fmt: skip
    assert built["val-000.parquet"][0]["instance_boxes"] == [[8, 5, 20, 20], [40, 30, 25, 25]]
    change({"counts": {"trainaug": 2, "val": 1, "trainval_aug": 3}}, objects="own/objects")
    assert build()["val-000.parquet"][0]["instance_areas"] == [400, 625]


def test_a_class_alone(own):
    change(
        {"classes": ["background", "two"], "labels": {"background": [0, "others"], "two": [2]}}, objects="own/objects"
    )
    assert [row["instance_classes"] for row in build()["train-000.parquet"]] == [[1], [1]]


@pytest.mark.parametrize(
    ("settings", "places", "message"),
    [
        ({}, {"images": "nowhere"}, "nowhere: no such folder; correct its path"),
        ({}, {"mask": "own/masks"}, "folders: has images, mask, masks, train, val; allowed: images, masks, train, val"),
        ({"counts": {"val": 2}}, {}, "val has 1 images, but dataset.counts.val in params.yaml is 2"),
        ({"labels": {"background": [0], "one": [1]}}, {}, "dataset: labels: allowed: a list of numbers for each of"),
        ({"labels": {"background": [0], "one": [1], "two": [1]}}, {}, "dataset: labels: 1 is named twice"),
        ({"labels": {"background": [0], "one": [1], "two": [70000]}}, {}, "two[0]: 70000 is not allowed"),
        ({"kind": "folder"}, {}, "dataset.kind: 'folder' is not allowed"),
        ({"classes": ["background", "one"]}, {}, "masks/a.png: holds 2, which is no class"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(own, settings, places, message):
    change(settings, **places)
    with pytest.raises(InputError) as caught:
        build()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (own / "out").exists() and not list(own.glob(".out*"))


def test_without_lists_or_with_older_ones(own):
    with pytest.raises(InputError, match="data/folders/images.sha256: No such file.*dvc repro folders@images"):
        make()
    build()
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(own / "own/masks/b.png")
    with pytest.raises(InputError, match="own/masks/b.png: changed since `dvc repro` began"):
        make()
    with pytest.raises(InputError, match="folders.objects: missing; allowed: images, masks, train, val"):
        folders.main(["objects", "--out", "x"])
