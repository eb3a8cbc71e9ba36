import io
import multiprocessing
import os
import re
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet import provenance, tables
from deconvnet.errors import InputError
from stages import dataset
from tests.conftest import SBD, VOC, draw, jpeg, mat, png, tar
from tests.damage import bomb, giant, grey4, place


def build(folder, voc, sbd, out="out", test=None, order=1):
    """Run the stage on archives of these members; `order` -1 turns both archives' order round."""
    tar(folder / "voc.tar", dict(list(voc.items())[::order]))
    tar(folder / "sbd.tgz", dict(list(sbd.items())[::order]), "w:gz")
    if test:
        tar(folder / "test.tar", test)
    else:
        (folder / "test.tar").touch()
    dataset.main(["--input", "voc.tar", "--sbd", "sbd.tgz", "--test", "test.tar", "--out", out])
    return {path.name: path.read_bytes() for path in (folder / out).iterdir()}


def rows(folder, pattern="*"):
    return [
        row for path in sorted((folder / "out").glob(f"{pattern}.parquet")) for row in tables.read(path).to_pylist()
    ]


def failure(folder, voc, sbd, *words, test=None):
    """The stage fails with one line that holds the words, and leaves no output, whole or half."""
    with pytest.raises(InputError) as caught:
        build(folder, voc, sbd, test=test)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert {path.name for path in folder.iterdir()} <= {"voc.tar", "sbd.tgz", "test.tar", "params.yaml"}


def test_splits_sources_and_precedence(experiment, voc_members, sbd_members):
    build(experiment, voc_members, sbd_members)
    found = [(row["split"], row["image_id"], row["source"]) for row in rows(experiment)]
    # v1 is annotated by both: VOC wins. v3 is in SBD's train list and in VOC's val: it is evaluated, never trained on.
    assert found == [("train", "s1", "sbd"), ("train", "s2", "sbd"), ("train", "v1", "voc"), ("train", "v2", "voc"),
                     ("val", "v3", "voc")]  # fmt: skip
    assert sorted(path.name for path in (experiment / "out").iterdir()) == [
        "train-000.parquet",
        "train-001.parquet",
        "val-000.parquet",
    ]


def test_bytes_and_masks_are_the_archives(experiment, voc_members, sbd_members):
    build(experiment, voc_members, sbd_members)
    found = {row["image_id"]: row for row in rows(experiment)}
    for folder, column in (
        ("JPEGImages", "image"),
        ("SegmentationClass", "class_mask"),
        ("SegmentationObject", "instance_mask"),
    ):
        name = f"{VOC}/{folder}/v1.{'jpg' if column == 'image' else 'png'}"
        assert found["v1"][column] == voc_members[name]
    _, classes, instances = draw(10)
    sbd = found["s1"]
    assert sbd["image"] == sbd_members[f"{SBD}/img/s1.jpg"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sbd["class_mask"]))), classes)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sbd["instance_mask"]))), instances)
    # drawn at (8, 5) with side 20 and at (40, 30) with side 25; VOC's column 8 is void
    assert (sbd["height"], sbd["width"], sbd["instance_classes"]) == (60, 80, [1, 2])
    assert (sbd["instance_boxes"], sbd["instance_areas"]) == ([[8, 5, 20, 20], [40, 30, 25, 25]], [400, 625])
    assert (found["v1"]["instance_boxes"][0], found["v1"]["instance_areas"][0]) == ([9, 5, 19, 20], 380)
    void = np.asarray(Image.open(io.BytesIO(found["v1"]["class_mask"])))[:, 8]
    assert (void == 255).all(), "void must stay void, never background"


def test_shards_are_the_same_bytes_whatever_the_order_and_the_cores(experiment, voc_members, sbd_members, monkeypatch):
    first = build(experiment, voc_members, sbd_members)
    assert build(experiment, voc_members, sbd_members, order=-1) == first
    monkeypatch.setattr(dataset, "cores", lambda: 1)
    assert build(experiment, voc_members, sbd_members) == first


def test_one_closing_line(experiment, voc_members, sbd_members, capsys):
    build(experiment, voc_members, sbd_members)
    assert capsys.readouterr().out == "out: 4 trainaug, 1 val images in 3 shards\n"


def test_test_split_has_images_only(experiment, voc_members, sbd_members):
    test = {f"{VOC}/JPEGImages/t1.jpg": jpeg(draw(5)[0]), f"{VOC}/ImageSets/Segmentation/test.txt": b"t1\n"}
    build(experiment, voc_members, sbd_members, test=test)
    [row] = rows(experiment, "test-*")
    assert (row["image_id"], row["class_mask"], row["instance_classes"]) == ("t1", None, None)


def test_shards_are_even(experiment, voc_members, sbd_members):
    voc_members[f"{VOC}/ImageSets/Segmentation/train.txt"] = b"v1\n"
    build(experiment, voc_members, sbd_members)  # 3 train images in shards of at most 2
    assert sorted(len(tables.read(path)) for path in (experiment / "out").glob("train-*")) == [1, 2]


def test_truncated_archives(experiment, voc_members, sbd_members):
    tar(experiment / "voc.tar", voc_members)
    tar(experiment / "sbd.tgz", sbd_members, "w:gz")
    whole = {name: (experiment / name).read_bytes() for name in ("voc.tar", "sbd.tgz")}
    with tarfile.open(experiment / "voc.tar") as archive:
        boundary = archive.getmembers()[3].offset  # exactly between two members: tarfile alone would not notice
    for name, size in (
        ("voc.tar", 2000),
        ("voc.tar", boundary),
        ("sbd.tgz", 3000),
        ("sbd.tgz", len(whole["sbd.tgz"]) - 9),
    ):
        for other, data in whole.items():
            (experiment / other).write_bytes(data[:size] if other == name else data)
        with pytest.raises(InputError, match=f"{name}: truncated or no tar") as caught:
            dataset.main(["--input", "voc.tar", "--sbd", "sbd.tgz", "--test", "voc.tar", "--out", "out"])
        assert "dvc repro" in str(caught.value)
        assert not (experiment / "out").exists()


def test_absent_and_wrong_files(experiment, voc_members, sbd_members):
    with pytest.raises(InputError, match=r"voc\.tar: no such file"):
        dataset.main(["--input", "voc.tar", "--sbd", "voc.tar", "--test", "voc.tar", "--out", "out"])
    (experiment / "voc.tar").write_text("<html>moved</html>" * 100)
    with pytest.raises(InputError, match=r"voc\.tar: truncated or no tar archive"):
        dataset.main(["--input", "voc.tar", "--sbd", "voc.tar", "--test", "voc.tar", "--out", "out"])


@pytest.mark.parametrize("name", ["/etc/passwd", "VOCdevkit/../../passwd"])
def test_names_that_leave_the_archive(experiment, voc_members, sbd_members, name):
    failure(experiment, voc_members | {name: b"x"}, sbd_members, "voc.tar", name)
    failure(experiment, voc_members, sbd_members | {name: b"x"}, "sbd.tgz", name)


def test_listed_but_absent(experiment, voc_members, sbd_members):
    for name in ("JPEGImages/v2.jpg", "SegmentationClass/v2.png", "SegmentationObject/v2.png"):
        failure(
            experiment, {k: v for k, v in voc_members.items() if not k.endswith(name)}, sbd_members, "voc.tar", name
        )
    for name in ("img/s1.jpg", "cls/s1.mat", "inst/s1.mat"):
        failure(
            experiment, voc_members, {k: v for k, v in sbd_members.items() if not k.endswith(name)}, "sbd.tgz", name
        )
    failure(experiment, voc_members, {k: v for k, v in sbd_members.items() if "val.txt" not in k}, "sbd.tgz", "val.txt")


def test_pictures_that_are_no_jpegs_and_absent_masks_say_what_is_needed(experiment, voc_members, sbd_members):
    """The layout is for own data, too: "fetch it again" alone would help nobody who made the archive."""
    picture = voc_members.pop(f"{VOC}/JPEGImages/v2.jpg")
    renamed = voc_members | {f"{VOC}/JPEGImages/v2.png": picture}
    failure(
        experiment, renamed, sbd_members, "voc.tar: JPEGImages/v2.jpg is missing", "JPEGImages/v2.png", "convert them"
    )
    own = voc_members | {f"{VOC}/JPEGImages/v2.jpg": picture}
    for folder, words in (("SegmentationClass", "2, ... the classes"), ("SegmentationObject", "2, ... the objects")):
        without = {name: data for name, data in own.items() if f"/{folder}/" not in name}
        failure(experiment, without, sbd_members, f"{folder}/v1.png is missing", "palette or grey PNG", words,
                "correct your own archive", "dvc repro")  # fmt: skip


def test_split_lists(experiment, voc_members, sbd_members):
    train = f"{VOC}/ImageSets/Segmentation/train.txt"
    failure(experiment, voc_members | {train: b" \n"}, sbd_members, "train.txt", "is empty")
    failure(experiment, voc_members | {train: b"v1\nv1\n"}, sbd_members, "train.txt", "twice")
    failure(experiment, voc_members | {train: b"v1\nv3\n"}, sbd_members, "v3", "train.txt", "val.txt")


def test_counts(experiment, voc_members, sbd_members):
    text = (experiment / "params.yaml").read_text()
    (experiment / "params.yaml").write_text(text.replace("shard_images: 2", "shard_images: 2\n  counts: {trainaug: 5}"))
    failure(experiment, voc_members, sbd_members, "trainaug has 4 images", "dataset.counts.trainaug", "is 5")


def test_images_and_masks_that_do_not_decode(experiment, voc_members, sbd_members):
    name = f"{VOC}/JPEGImages/v1.jpg"
    failure(experiment, voc_members | {name: voc_members[name][:-200]}, sbd_members, "v1.jpg", "does not decode")
    failure(experiment, voc_members | {name: b""}, sbd_members, "v1.jpg", "does not decode")
    name = f"{VOC}/SegmentationClass/v1.png"
    failure(
        experiment,
        voc_members | {name: voc_members[name][:60]},
        sbd_members,
        "SegmentationClass/v1.png",
        "does not decode",
    )
    colours = io.BytesIO()
    Image.fromarray(draw(0)[0]).save(colours, "PNG")
    failure(experiment, voc_members | {name: colours.getvalue()}, sbd_members, "v1.png", "palette or grey", "RGB")


def test_masks_of_another_size(experiment, voc_members, sbd_members):
    _, classes, instances = draw(0)
    for folder, kind, mask in (("Class", "class", classes), ("Object", "instance", instances)):
        name = f"{VOC}/Segmentation{folder}/v1.png"
        failure(
            experiment, voc_members | {name: png(mask[:, :-1])}, sbd_members, "v1", f"{kind} mask has 79x60", "80x60"
        )


def test_class_ids_out_of_range(experiment, voc_members, sbd_members):
    _, classes, _ = draw(0)
    classes[0, 0] = 3
    name = f"{VOC}/SegmentationClass/v1.png"
    failure(experiment, voc_members | {name: png(classes)}, sbd_members, "v1", "class id 3", "0 to 2", "255")
    name = f"{SBD}/cls/s1.mat"
    failure(experiment, voc_members, sbd_members | {name: mat(GTcls={"Segmentation": classes})}, "s1", "class id 3")


def test_instances_that_contradict_the_classes(experiment, voc_members, sbd_members):
    _, classes, instances = draw(0)
    instances[0:3, 60:70] = 3  # on the background
    name = f"{VOC}/SegmentationObject/v1.png"
    failure(
        experiment, voc_members | {name: png(instances)}, sbd_members, "v1", "instance 3 contradicts the class mask"
    )
    name = f"{SBD}/inst/s1.mat"
    swapped = {"Segmentation": draw(10)[2], "Categories": np.array([[2], [1]])}
    failure(experiment, voc_members, sbd_members | {name: mat(GTinst=swapped)}, "s1", "instance 1", "its category is 2")
    short = {"Segmentation": draw(10)[2], "Categories": np.array([[1]])}
    failure(experiment, voc_members, sbd_members | {name: mat(GTinst=short)}, "s1", "instance 2", "only 1 categories")


@pytest.mark.parametrize(
    "data",
    [
        b"not a mat file",
        mat(other=1),
        mat(GTinst={"Segmentation": np.zeros((60, 80), np.uint8)}),
        mat(GTinst={"Categories": np.array([[1]])}),
        mat(GTinst={"Segmentation": "text", "Categories": np.array([[1]])}),
        mat(GTinst={"Segmentation": np.full((60, 80), 300), "Categories": np.array([[1]])}),
    ],
)
def test_mat_files_without_the_expected_fields(experiment, voc_members, sbd_members, data):
    failure(
        experiment,
        voc_members,
        sbd_members | {f"{SBD}/inst/s2.mat": data},
        "sbd.tgz",
        "inst/s2.mat",
        "GTinst.Segmentation",
    )


def test_unpacks_nothing(experiment, voc_members, sbd_members):
    before = {"params.yaml", "voc.tar", "sbd.tgz", "test.tar", "out"}
    build(experiment, voc_members, sbd_members)
    assert {path.name for path in experiment.iterdir()} == before
    assert all(re.fullmatch(r"(train|val)-\d{3}\.parquet", path.name) for path in (experiment / "out").iterdir())


def archives(folder, voc, sbd):
    tar(folder / "voc.tar", voc)
    tar(folder / "sbd.tgz", sbd, "w:gz")
    (folder / "test.tar").touch()


def make(out="out"):
    dataset.main(["--input", "voc.tar", "--sbd", "sbd.tgz", "--test", "test.tar", "--out", out])
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def killed(after):
    """The stage, killed in the middle of the shard after so many."""

    def run():
        write, written = dataset.write, []

        def counted(path, rows):
            if len(written) == after:
                path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(path)
            write(path, rows)

        dataset.write = counted
        make()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not Path("out").exists(), "half a data set must not look like one"


@pytest.fixture
def written(monkeypatch):
    """Names of the shards that are written from now on."""
    names, write = [], dataset.write
    monkeypatch.setattr(dataset, "write", lambda path, rows: (names.append(path.name), write(path, rows)))
    return names


def test_after_a_kill_only_missing_shards_are_made(experiment, voc_members, sbd_members, written, capsys):
    archives(experiment, voc_members, sbd_members)
    expected = make("uninterrupted")
    assert sorted(written) == ["train-000.parquet", "train-001.parquet", "val-000.parquet"]
    killed(after=2)
    written.clear()
    capsys.readouterr()
    assert make() == expected
    assert written == ["val-000.parquet"]
    assert "out: 2 of 3 shards reused from an interrupted run" in capsys.readouterr().out
    assert not list(experiment.glob(".*"))


@pytest.mark.parametrize("what", ["archive", "parameters", "code"])
def test_what_a_kill_left_is_not_used_for_anything_else(
    experiment, voc_members, sbd_members, written, monkeypatch, what
):
    archives(experiment, voc_members, sbd_members)
    killed(after=2)
    if what == "archive":
        archives(experiment, voc_members | {f"{VOC}/JPEGImages/v2.jpg": jpeg(draw(77)[0])}, sbd_members)
    elif what == "parameters":
        params = experiment / "params.yaml"
        params.write_text(params.read_text().replace("shard_images: 2", "shard_images: 3"))
    else:
        monkeypatch.setattr(provenance, "code", lambda module: "another")
    found = make()
    assert sorted(written) == ["train-000.parquet", "train-001.parquet", "val-000.parquet"]
    assert found == make("uninterrupted")
    assert not list(experiment.glob(".*"))


def test_two_at_once_do_not_end_in_half_a_data_set(experiment, voc_members, sbd_members, monkeypatch):
    archives(experiment, voc_members, sbd_members)
    write = dataset.write

    def overtaken(path, rows):
        for other in path.parent.glob("*.parquet"):  # the other one has come to its end and renamed the folder
            other.unlink()
        write(path, rows)

    monkeypatch.setattr(dataset, "write", overtaken)
    with pytest.raises(InputError, match="out: another process is making it, too; wait for its end, then run again"):
        make()
    assert not (experiment / "out").exists()


def odd_mats():
    _, classes, _ = draw(10)
    values = classes.astype(float)
    for bad in (np.nan, np.inf, -1.0, 1.5, 256.0, 2.0**32 + 1):
        yield mat(GTcls={"Segmentation": np.where(classes == 1, bad, values)})
    yield mat(GTcls={"Segmentation": classes + (classes > 0) * np.int64(2**32)})


@pytest.mark.parametrize("data", odd_mats())
def test_mat_files_whose_numbers_a_cast_would_change(experiment, voc_members, sbd_members, data):
    failure(experiment, voc_members, sbd_members | {f"{SBD}/cls/s1.mat": data}, "cls/s1.mat", "no mask of 0 to 255")


@pytest.mark.parametrize("bad", [np.nan, -1, 1.5, 257])
def test_categories_that_a_cast_would_change(experiment, voc_members, sbd_members, bad):
    _, _, instances = draw(10)
    data = mat(GTinst={"Segmentation": instances, "Categories": np.array([[bad], [2]])})
    failure(experiment, voc_members, sbd_members | {f"{SBD}/inst/s1.mat": data}, "inst/s1.mat", "a category is none")


def test_masks_that_look_like_masks(experiment, voc_members, sbd_members):
    _, classes, instances = draw(0)
    labels, objects = (f"{VOC}/Segmentation{kind}/v1.png" for kind in ("Class", "Object"))
    for kind in ("GIF", "TIFF"):
        other = io.BytesIO()
        Image.fromarray(classes).save(other, kind)
        failure(experiment, voc_members | {labels: other.getvalue()}, sbd_members, "v1.png", "does not decode")
    failure(experiment, voc_members | {objects: grey4(instances)}, sbd_members, "v1.png", "must have 8 bits", "has 4")
    failure(
        experiment, voc_members | {objects: png(0 * instances)}, sbd_members, "v1", "class 1 has 380 px in the class"
    )
    fifteen = np.where(instances > 0, 15, 0).astype(np.uint8)
    failure(experiment, voc_members | {objects: png(fifteen)}, sbd_members, "v1", "may have changed places")
    failure(experiment, voc_members | {labels: giant()}, sbd_members, "v1.png", "(3600000000 pixels) exceeds limit")


def test_a_mat_file_that_holds_far_more_than_its_size(experiment, voc_members, sbd_members):
    failure(
        experiment,
        voc_members,
        sbd_members | {f"{SBD}/cls/s1.mat": bomb()},
        "cls/s1.mat",
        "holds more than 134,217,728",
    )


@pytest.mark.parametrize("text", ["v1\nv2\n".encode("utf-16"), "v1\nü\n".encode("latin-1")])
def test_split_lists_of_other_encodings(experiment, voc_members, sbd_members, text):
    name = f"{VOC}/ImageSets/Segmentation/train.txt"
    failure(experiment, voc_members | {name: text}, sbd_members, "train.txt", "is not UTF-8 text")


@pytest.mark.parametrize("name", ["../v1", "v" * 100_000, "v\x1b[31m"])
def test_names_of_images_that_are_none(experiment, voc_members, sbd_members, name):
    data = f"{name}\n".encode()
    failure(
        experiment, voc_members | {f"{VOC}/ImageSets/Segmentation/train.txt": data}, sbd_members, "is no name of an"
    )


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a loop"])
def test_what_is_no_plain_file_is_no_archive(experiment, voc_members, sbd_members, kind):
    tar(experiment / "voc.tar", voc_members)
    place(experiment / "voc.tar", kind)
    with pytest.raises(InputError, match=r"voc\.tar: (not a plain file|no such file)"):
        dataset.main(["--input", "voc.tar", "--sbd", "voc.tar", "--test", "voc.tar", "--out", "out"])


def test_sizes_that_no_archive_has(experiment, voc_members, sbd_members):
    tar(experiment / "voc.tar", voc_members)
    data = bytearray((experiment / "voc.tar").read_bytes())
    data[124:136] = b"\x80" + b"\x7f" * 11  # the first member's size, in base 256
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (experiment / "voc.tar").write_bytes(data)
    (experiment / "none").touch()
    with pytest.raises(InputError, match=r"voc\.tar: truncated or no tar"):
        dataset.main(["--input", "voc.tar", "--sbd", "none", "--test", "none", "--out", "out"])


def test_a_gzipped_archive_that_holds_far_more_than_its_size(experiment, voc_members, sbd_members, monkeypatch):
    monkeypatch.setattr("deconvnet.archives.LEAST", 1 << 20)
    failure(
        experiment, voc_members, sbd_members | {"x": bytes(50 << 20)}, "sbd.tgz", "holds more than 20 times its size"
    )


def test_a_file_in_the_place_of_the_output_is_found_at_once(experiment, voc_members, sbd_members):
    (experiment / "out").touch()
    with pytest.raises(InputError, match="out: is a file, but a folder is to be made there"):
        build(experiment, voc_members, sbd_members)
