"""The world's archives: official layouts, exact annotation, the same bytes every time."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import loadmat

from deconvnet.errors import InputError
from demo.world import archives, scenes, shapes
from demo.world.shapes import CLASSES, KINDS
from experiment.params import DrawnSbd, DrawnVoc

REPOSITORY = Path(__file__).parents[2]
BY = "demo/world/archives.py"
VOC = DrawnVoc(BY, "voc.tar", seed=5, train=4, val=3)
SBD = DrawnSbd(BY, "sbd.tgz", seed=5, train=3, val=2, shared_train=2, shared_val=2)


def write_params(folder, voc=VOC, sbd=SBD):
    params = yaml.safe_load((REPOSITORY / "demo/params.yaml").read_text())
    params["fetch"] |= {"voc_trainval": dataclasses.asdict(voc), "sbd": dataclasses.asdict(sbd)}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment folder with both archives."""
    folder = tmp_path_factory.mktemp("experiment")
    write_params(folder)
    with contextlib.chdir(folder):
        archives.main(["voc_trainval"])
        archives.main(["sbd"])
    return folder


def read(path):
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}


@pytest.fixture(scope="module")
def voc(folder):
    return read(folder / "voc.tar")


@pytest.fixture(scope="module")
def sbd(folder):
    return read(folder / "sbd.tgz")


@pytest.fixture(scope="module")
def drawn():
    return [scenes.scene(0, image_id) for image_id in archives.ids(2010, 40)]


@pytest.fixture(scope="module")
def arrangements():
    return [scenes.arrange(np.random.default_rng([0, number])) for number in range(200)]


def listed(members, suffix):
    (name,) = (name for name in members if name.endswith(suffix))
    return members[name].decode().split()


def mask_of(png):
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P"
    return np.array(image)


def test_archives_have_the_same_bytes_every_time(monkeypatch, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "sbd.tgz", "voc.tar"]
    first = (folder / "sbd.tgz").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)  # gzip and tar would write it; savemat writes the present second
    monkeypatch.chdir(folder)
    archives.main(["sbd"])
    assert (folder / "sbd.tgz").read_bytes() == first
    stream = io.BytesIO()
    archives.write_archive(stream, read(folder / "voc.tar").items())
    assert stream.getvalue() == (folder / "voc.tar").read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_number_of_processes_changes_nothing(sbd, processes):
    assert list(archives.members(SBD, processes)) == list(sbd.items())


def test_another_seed_is_another_world():
    assert not np.array_equal(scenes.scene(1, "2010_000001").image, scenes.scene(2, "2010_000001").image)


def test_voc_lists_and_files(voc):
    train, val = listed(voc, "/train.txt"), listed(voc, "/val.txt")
    assert (len(train), len(val)) == (4, 3)
    assert not set(train) & set(val)
    assert listed(voc, "/trainval.txt") == train + val
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png")):
        assert all(f"VOCdevkit/VOC2012/{folder}/{image_id}.{suffix}" in voc for image_id in train + val)


def test_masks_carry_vocs_palette(voc):
    def color(index):  # as VOCdevkit's VOClabelcolormap.m counts: three bits of the index a round
        red = green = blue = 0
        for shift in range(7, -1, -1):
            red, green, blue = (
                red | (index & 1) << shift,
                green | (index >> 1 & 1) << shift,
                blue | (index >> 2 & 1) << shift,
            )
            index >>= 3
        return [red, green, blue]

    pngs = [content for name, content in voc.items() if name.endswith(".png")]
    assert len(pngs) == 14
    for png in pngs:
        assert Image.open(io.BytesIO(png)).getpalette() == [value for index in range(256) for value in color(index)]
    assert [color(1), color(15), color(255)] == [[128, 0, 0], [192, 128, 128], [224, 224, 192]]


def test_written_masks_and_images_are_the_scenes(voc):
    folder = "VOCdevkit/VOC2012"
    scene = scenes.scene(5, "2011_000002")
    assert np.array_equal(mask_of(voc[f"{folder}/SegmentationClass/2011_000002.png"]), scene.class_mask)
    assert np.array_equal(mask_of(voc[f"{folder}/SegmentationObject/2011_000002.png"]), scene.instance_mask)
    image = np.array(Image.open(io.BytesIO(voc[f"{folder}/JPEGImages/2011_000002.jpg"])))
    assert image.shape == (160, 200, 3)
    assert abs(image.astype(int) - scene.image).mean() < 4  # JPEG's loss, of 255; swapped channels lose far more


def test_instances_and_classes_agree(drawn):
    for scene in drawn:
        assert scene.class_mask.dtype == scene.instance_mask.dtype == np.uint8
        assert np.array_equal(scene.class_mask == 255, scene.instance_mask == 255)
        assert set(np.unique(scene.instance_mask)) - {0, 255} == set(range(1, len(scene.instance_classes) + 1))
        sure = scene.instance_mask != 255
        assert np.array_equal(scene.instance_mask[sure], scene.visible[sure])
        class_of = np.concatenate([[0], scene.instance_classes])
        assert np.array_equal(class_of[scene.instance_mask[sure]], scene.class_mask[sure])


def test_a_contour_of_one_void_pixel_parts_everything(drawn):
    for scene in drawn:
        instances, void = scene.instance_mask, scene.instance_mask == 255
        for a, b in ((instances[1:], instances[:-1]), (instances[:, 1:], instances[:, :-1])):
            assert ((a == b) | (a == 255) | (b == 255)).all()  # no two regions touch
        near = np.pad(~void & (instances > 0), 1)
        beside = near[2:, 1:-1] | near[:-2, 1:-1] | near[1:-1, 2:] | near[1:-1, :-2]
        assert beside[void].mean() > 0.97  # but where objects crowd, each void pixel has its object beside it


def test_sbd_lists_overlap_voc_as_told(voc, sbd):
    train, val = listed(sbd, "/train.txt"), listed(sbd, "/val.txt")
    assert len(train + val) == len(set(train + val)) == 3 + 2 + 2 + 2
    assert set(train + val) & set(listed(voc, "/val.txt")) == {"2011_000001", "2011_000002"}
    assert set(train + val) & set(listed(voc, "/train.txt")) == {"2010_000001", "2010_000002"}
    assert len(set(train) & set(listed(voc, "/val.txt"))) == len(set(val) & set(listed(voc, "/val.txt"))) == 1
    for image_id in set(train + val) & set(listed(voc, "/trainval.txt")):
        picture = sbd[f"benchmark_RELEASE/dataset/img/{image_id}.jpg"]
        assert picture == voc[f"VOCdevkit/VOC2012/JPEGImages/{image_id}.jpg"]


def test_sbd_mat_files_have_the_official_fields(sbd):
    for image_id in listed(sbd, "/train.txt") + listed(sbd, "/val.txt"):
        folder = "benchmark_RELEASE/dataset"
        classes = loadmat(io.BytesIO(sbd[f"{folder}/cls/{image_id}.mat"]))["GTcls"]
        instances = loadmat(io.BytesIO(sbd[f"{folder}/inst/{image_id}.mat"]))["GTinst"]
        assert classes.dtype.names == ("Boundaries", "Segmentation", "CategoriesPresent")
        assert instances.dtype.names == ("Boundaries", "Segmentation", "Categories")
        class_mask, instance_mask = classes["Segmentation"][0, 0], instances["Segmentation"][0, 0]
        categories = instances["Categories"][0, 0]
        count = len(categories)
        assert class_mask.shape == instance_mask.shape == (160, 200)
        assert categories.shape == (count, 1)
        assert class_mask.dtype == instance_mask.dtype == categories.dtype == np.uint8
        assert set(np.unique(instance_mask)) - {0} == set(range(1, count + 1))
        assert np.array_equal(np.append(0, categories)[instance_mask], class_mask)
        assert set(classes["CategoriesPresent"][0, 0].ravel()) == set(np.unique(class_mask)) - {0}
        assert classes["Boundaries"][0, 0].shape == (len(CLASSES) - 1, 1)
        cells = instances["Boundaries"][0, 0]
        assert cells.shape == (count, 1)
        assert all((instance_mask[cells[k, 0].toarray() > 0] == k + 1).all() for k in range(count))


def test_sbd_draws_without_void_and_a_little_otherwise(drawn):
    differing = 0
    for scene in drawn:
        class_mask, instance_mask = archives.sbd_annotation(scene)
        assert class_mask.max() < len(CLASSES)
        assert set(np.unique(instance_mask)) - {0} == set(range(1, len(scene.instance_classes) + 1))
        sure = scene.class_mask != 255
        wrong = (class_mask != scene.class_mask)[sure]
        assert wrong.mean() < 0.01
        differing += wrong.any()
    assert differing > len(drawn) / 2


def test_every_class_occurs_and_the_common_ones_more_often(arrangements):
    counts = Counter(item.label for objects, _, _ in arrangements for item in objects)
    by_share = [counts[label] for label in range(1, len(CLASSES))]
    assert sum(kind.share for kind in KINDS) == pytest.approx(1)
    assert min(by_share) >= 10
    assert np.corrcoef(by_share, [kind.share for kind in KINDS])[0, 1] > 0.85
    assert min(by_share[:3]) > max(by_share[-3:])


def test_objects_from_small_to_nearly_the_whole_image_at_least_half_visible(arrangements):
    assert {len(objects) for objects, _, _ in arrangements} >= {1, 2, 3, 4, 5}
    sides = []
    for objects, visible, contour in arrangements:
        for k, item in enumerate(objects, start=1):
            region = visible == k
            assert (region & ~contour).sum() >= 16
            assert region.sum() >= 0.5 * scenes.footprint(item)[1]
            rows, columns = np.nonzero(region)
            sides.append(1 + max(np.ptp(rows), np.ptp(columns)))
    assert min(sides) <= 16
    assert max(sides) >= 150
    assert 30 < np.median(sides) < 70


def test_objects_of_a_class_touch(arrangements):
    touching = 0
    for objects, visible, _ in arrangements:
        class_mask = scenes.paint(visible, np.array([item.label for item in objects], np.uint8))
        beside = visible[:, 1:] != visible[:, :-1]
        alike = (class_mask[:, 1:] == class_mask[:, :-1]) & (class_mask[:, 1:] > 0)
        touching += (beside & alike).any()
    assert touching > 0.15 * len(arrangements)


def test_bad_parameters_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    good = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for change, words in (
        ({"val": -1}, r"params.yaml: fetch.sbd.val: -1 .* 0"),
        (dict.fromkeys(("train", "val", "shared_train", "shared_val"), 0), "no images at all"),
        ({"by": "stages/fetch.py", "addresses": []}, r"fetch.sbd.seed: unknown key .* allowed: by, file, addresses"),
    ):
        entry = good["fetch"]["sbd"] | change
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(good | {"fetch": good["fetch"] | {"sbd": entry}}))
        with pytest.raises(InputError, match=words):
            archives.main(["sbd"])
    fetched = {"by": "stages/fetch.py", "file": "sbd.tgz", "addresses": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(good | {"fetch": good["fetch"] | {"sbd": fetched}}))
    with pytest.raises(InputError, match=r"fetch.sbd.by: stages/fetch.py, not demo/world/archives.py"):
        archives.main(["sbd"])
    assert not (tmp_path / "sbd.tgz").exists()


def test_as_dvc_runs_it(tmp_path, folder):
    """As a script, without its own folder on the path: `dvc.yaml` names the file, and the demo has no package."""
    write_params(tmp_path)
    root = os.path.relpath(REPOSITORY, tmp_path)
    command = [sys.executable, "-P", f"{root}/demo/world/archives.py", "sbd"]
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sbd.tgz").read_bytes() == (folder / "sbd.tgz").read_bytes()
    assert done.stdout == f"sbd.tgz: drawn, {(tmp_path / 'sbd.tgz').stat().st_size:,} bytes\n"


def test_items_outside_the_image_leave_nothing():
    item = scenes.new_item(np.random.default_rng(0), 1, shapes.disc, shapes.stripes, 0, half=20.0)
    for x, y in ((-60, 80), (100, -60), (300, 80), (100, 300), (-60, 300)):
        mask, area = scenes.footprint(dataclasses.replace(item, x=x, y=y))
        assert not mask.any()
        assert area > 500
