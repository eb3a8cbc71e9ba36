"""A small VOC and SBD, written by the tests themselves in the official layouts, that each test may damage."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image
from scipy.io import savemat

from tests import pipeline

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

# The files that take minutes, longest first: processes that begin with them end at about the same time. The second and
# the third do without `built`, which the first one makes.
LONGEST = [
    "workflow/test_graph.py", "stages/test_processes.py", "workflow/test_own_data.py", "workflow/test_experiments.py",
    "workflow/test_interruption.py", "workflow/test_cluster.py", "workflow/test_claims.py", "workflow/test_pipeline.py",
    "stages/test_train.py", "workflow/test_remote.py", "stages/test_origin.py",
    "test_full_disk.py", "test_wheel.py", "test_fuzz.py", "stages/test_whole_images.py", "test_walkthrough.py",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    order = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(mask)
    image.putpalette([value for number in range(256) for value in (number, number, number)])
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mat(**structs: dict) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, structs)
    return buffer.getvalue()


def draw(seed: int, height: int = 60, width: int = 80):
    """An image (H, W, 3), its class mask and instance mask (H, W): instance 1 of class 1, instance 2 of class 2."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (height, width, 3), np.uint8)
    classes, instances = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    for number, (y, x, side) in enumerate([(5, 8, 20), (30, 40, 25)], 1):
        image[y : y + side, x : x + side] = (200, 40 * number, 30)
        classes[y : y + side, x : x + side] = instances[y : y + side, x : x + side] = number
    return image, classes, instances


def tar(path, members: dict[str, bytes], mode: str = "w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


VOC, SBD = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"


@pytest.fixture
def voc_members() -> dict[str, bytes]:
    """VOC: v1, v2 in train, v3 in val."""
    members = {}
    for seed, image_id in enumerate(["v1", "v2", "v3"]):
        image, classes, instances = draw(seed)
        for mask in (classes, instances):
            mask[:, 8] = 255  # void: the left border of instance 1 and the column beyond it
        members[f"{VOC}/JPEGImages/{image_id}.jpg"] = jpeg(image)
        members[f"{VOC}/SegmentationClass/{image_id}.png"] = png(classes)
        members[f"{VOC}/SegmentationObject/{image_id}.png"] = png(instances)
    members[f"{VOC}/ImageSets/Segmentation/train.txt"] = b"v1\nv2\n"
    members[f"{VOC}/ImageSets/Segmentation/val.txt"] = b"v3\n"
    return members


@pytest.fixture
def sbd_members() -> dict[str, bytes]:
    """SBD: s1, v1 (VOC train) and v3 (VOC val) in train, s2 in val."""
    members = {}
    for seed, image_id in enumerate(["s1", "v1", "v3", "s2"], 10):
        image, classes, instances = draw(seed)
        members[f"{SBD}/img/{image_id}.jpg"] = jpeg(image)
        members[f"{SBD}/cls/{image_id}.mat"] = mat(GTcls={"Segmentation": classes, "Boundaries": 0})
        members[f"{SBD}/inst/{image_id}.mat"] = mat(
            GTinst={"Segmentation": instances, "Categories": np.array([[1], [2]], np.uint8)}
        )
    members[f"{SBD}/train.txt"] = b"s1\nv1\nv3\n"
    members[f"{SBD}/val.txt"] = b"s2\n"
    return members


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """An empty experiment folder, with the demo's parameters but three classes, as the working directory."""
    import yaml

    repository = Path(__file__).parents[1]
    params = yaml.safe_load((repository / "demo/params.yaml").read_text())
    params["root"] = str(repository)
    params["dataset"] = {"classes": ["background", "one", "two"], "shard_images": 2, "kind": "voc"}
    params["proposals"]["recall"]["min_area"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def built(tmp_path_factory, worker_id):
    """An experiment that has run once, for `pipeline.clone`: made once for all of pytest's processes, never changed."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    folder, done = base / "built", base / "built.done"
    with FileLock(base / "built.lock"):
        if not done.exists():
            experiment = pipeline.write_repository(folder)
            pipeline.repro(experiment)
            pipeline.commit(folder, "built")
            done.touch()
    return folder / "demo"
