"""The experiment that is made of a folder of images: its parameters, and what is refused before anything is written."""

import numpy as np
import pytest
import yaml
from PIL import Image

from deconvnet.batches import held_out
from deconvnet.errors import InputError
from experiment import check, new, params
from tests.conftest import draw

REPOSITORY = new.ROOT
CLASSES = ["--classes", "background", "one", "two"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """30 images of 80x60 px with their masks; `python -m experiment.check` does nothing."""
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for seed in range(30):
        image, mask, _ = draw(seed)
        Image.fromarray(image).save(tmp_path / f"data/images/{seed}.jpg")
        Image.fromarray(mask).save(tmp_path / f"data/masks/{seed}.png")
    monkeypatch.setattr(check, "main", lambda arguments: None)
    monkeypatch.setattr(new, "gpus", lambda: 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(data, *arguments):
    new.main(["mine", "--images", "data/images", "--masks", "data/masks", *arguments])


def test_an_experiment_is_made(data, capsys, monkeypatch):
    make(data, *CLASSES, "--offline")
    mine = data / "mine"
    files = {".dvc", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml", "train.txt", "val.txt"}
    assert {path.name for path in mine.iterdir()} == files
    assert (mine / "dvc.yaml").read_bytes() == (REPOSITORY / "dvc.yaml").read_bytes()
    assert "no_scm = true" in (mine / ".dvc/config").read_text()  # no git around it
    lists = [(mine / f"{split}.txt").read_text().split() for split in ("train", "val")]
    assert list(map(len, lists)) == [24, 6] and sorted(sum(lists, [])) == sorted(map(str, range(30)))
    found = params.load(mine / "params.yaml")
    assert (found.root, found.dataset.kind, found.dataset.input) == (str(REPOSITORY), "folders", "data/folders")
    assert found.dataset.counts == {"trainaug": 24, "val": 6} and found.dataset.longest is None
    assert found.folders == {"images": str(data / "data/images"), "masks": str(data / "data/masks"),
                             "train": "train.txt", "val": "val.txt"}  # fmt: skip
    assert not any(getattr(found.fetch, name).addresses for name in vars(found.fetch))
    assert found.train_fcn.canvas == (60, 80) and found.train_fcn.scale == 1
    # 80 px where the paper has 500: 1000 x 0.0256, 400 x 0.0256; 0.3 of demo/'s steps
    assert (found.proposals.min_box_area, found.proposals.recall.min_area) == (26, 10)
    assert [run.steps for run in (found.pretrain.run, found.train.stage1, found.train.stage2, found.train_fcn.run)] == [
        270, 60, 600, 180
    ]  # fmt: skip
    import pandas as pd

    assert 4 <= held_out(pd.Series(lists[0]), found.training.held_out).sum() < 24
    printed = capsys.readouterr().out
    assert "24 train and 6 val images of 80x60 px" in printed and "connected parts of a class" in printed
    assert "one                    24       24              6        6" in printed
    assert "    dvc repro" in printed and "git add" not in printed


def test_photographs_get_the_published_weights_and_large_ones_are_reduced(data, monkeypatch, capsys):
    for name in ("images/3.jpg", "masks/3.png"):
        path = data / "data" / name
        Image.open(path).resize((1600, 1200), Image.Resampling.NEAREST).save(path)
    monkeypatch.setattr(new, "gpus", lambda: 1)
    make(data, "--labels", "background=0,others", "two=2", "void=9,255")
    found = params.load("params.yaml")  # it is in the new folder now
    root = params.load(REPOSITORY / "params.yaml")
    assert (found.fetch.vgg16, found.fetch.edge_model) == (root.fetch.vgg16, root.fetch.edge_model)
    assert found.pretrain.size.width == 64 and found.proposals.edges == "structured"
    assert found.dataset.longest == 640 and found.train_fcn.canvas == (480, 640) and found.train_fcn.scale == 1
    assert found.dataset.classes == ("background", "two")
    assert found.dataset.labels == {"background": (0, "others"), "two": (2,), "void": (9, 255)}
    assert found.train.stage2.steps == 2160  # 1800 x 0.3 x 4
    assert "the largest has 1600x1200 px: reduced" in capsys.readouterr().out


def test_lists_of_one_s_own(data):
    (data / "train.txt").write_text("".join(f"{number}.jpg\n" for number in range(9)))
    (data / "val.txt").write_text("20\n")
    make(data, *CLASSES, "--offline", "--lists", ".")
    assert (data / "mine/train.txt").read_text().split() == [str(number) for number in range(9)]
    assert (data / "mine/val.txt").read_text() == "20\n"


def test_a_split_by_chance_depends_on_its_seed_alone():
    images = [new.folders.File(new.Path(f"{number}.jpg")) for number in range(50)]
    drawn = new.draw_lists(images, 0.2, 1)
    assert drawn == new.draw_lists(images[::-1], 0.2, 1) != new.draw_lists(images, 0.2, 2)
    assert len(drawn["val"]) == 10
    assert [len(new.draw_lists(images[:3], share, 1)["val"]) for share in (0.01, 0.9)] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "background"], "--labels: 'background' is not allowed; allowed: NAME=NUMBERS, such as car=7,8"),
        (["--labels", "background=0", "a=x"], "--labels: 'a=x' is not allowed"),
        (["--labels", "background=0", "a=1", "a=2"], "--labels: 'a=2' is not allowed"),
        (["--labels", "background=0", "a=0"], "--labels: dataset: labels: 0 is named twice"),
        (["--labels", "background=0", "a=65536"], "--labels: dataset.labels.a[0]: 65536 is not allowed"),
        (["--classes", "one"], "--classes: dataset: classes: 1 names are not allowed"),
        (["--classes", "background", "a\nb"], "--classes: dataset.classes[1]: 'a\\nb' is not allowed"),
        (["--classes", "background", "one"], "holds 2, which is no class"),
        ([*CLASSES, "--seed", "-1"], "--seed: -1 is not allowed; allowed: 0 or more"),
        (["--labels", "background=0", "a=" + "1" * 5000], "allowed: NAME=NUMBERS"),
        ([*CLASSES, "--share", "1"], "--share: 1 is not allowed"),
        ([*CLASSES, "--longest", "8"], "--longest: 8 is not allowed"),
        ([*CLASSES, "--lists", "."], "train.txt: No such file"),
        ([*CLASSES, "--objects", "nowhere"], "nowhere: no such folder"),
        (["--labels", "background=0,1,2", "thing=7"], "no mask of a training image shows a class"),
    ],
)
def test_what_is_refused_is_one_line_and_nothing_is_written(data, arguments, message):
    before = {*data.iterdir()}
    with pytest.raises(InputError) as caught:
        make(data, *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert {*data.iterdir()} == before


def test_masks_of_0_and_255_are_told_what_to_say(data):
    for path in (data / "data/masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    with pytest.raises(InputError, match="shows a class; where 255 is your class, say so: --labels background=0 NAME="):
        make(data, "--classes", "background", "thing")
    make(data, "--labels", "background=0", "thing=255", "--offline")


def test_an_existing_folder_and_too_few_images(data):
    (data / "mine").mkdir()
    with pytest.raises(InputError, match="mine: is there already; name a new folder"):
        make(data, *CLASSES)
    (data / "mine").rmdir()
    (data / "train.txt").write_text("1\n")
    (data / "val.txt").write_text("2\n")
    with pytest.raises(InputError, match="1 training images with objects are too few to hold one out"):
        make(data, *CLASSES, "--lists", ".")
    for path in [*(data / "data/images").iterdir()][2:]:
        path.unlink()
    with pytest.raises(InputError, match="2 pictures that Pillow reads; three are the least"):
        make(data, *CLASSES)
    assert not (data / "mine").exists()


def test_every_number_of_the_template_is_a_parameter_file_s(data):
    """The new file has the keys of the root's, so that nothing is missed when a key is added."""

    def keys(node, name=""):
        if not isinstance(node, dict) or name in (".folders", ".fetch", ".dataset.labels", ".dataset.counts"):
            return {name}
        return set().union(*(keys(value, f"{name}.{key}") for key, value in node.items()))

    make(data, *CLASSES, "--offline")
    own = keys(yaml.safe_load((data / "mine/params.yaml").read_text()))
    root = keys(yaml.safe_load((REPOSITORY / "params.yaml").read_text()))
    assert root <= own and own - root == {".dataset.labels", ".dataset.longest"}
