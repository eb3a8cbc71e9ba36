"""Images and masks in folders: what becomes of pictures of every kind, and one clear line for what cannot be used."""

import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from deconvnet import folders, voc
from deconvnet.errors import InputError
from deconvnet.files import list_files
from deconvnet.images import VOID, decode_image, decode_mask
from tests.conftest import draw

CLASSES = ["background", "one", "two"]


@pytest.fixture
def place(tmp_path):
    for name in ("images", "masks", "objects"):
        (tmp_path / name).mkdir()
    return tmp_path


def save(place, name="a", image=None, mask=None, objects=None, suffix="png", **options):
    """An image and its masks, arrays or PIL images, as files; `draw`'s first scene by default."""
    drawn = draw(0)
    for folder, value, ending in (("images", drawn[0] if image is None else image, suffix),
                                  ("masks", drawn[1] if mask is None else mask, "png"),
                                  ("objects", objects, "png")):  # fmt: skip
        if value is not None:
            picture = value if isinstance(value, Image.Image) else Image.fromarray(value)
            picture.save(place / folder / f"{name}.{ending}", **(options if folder == "images" else {}))


def sources(place, train=("a",), val=(), objects=False):
    files = [[folders.File(path) for path in sorted((place / name).iterdir())] for name in ("images", "masks")]
    own = [folders.File(path) for path in (place / "objects").iterdir()] if objects else None
    return folders.find(*files, own, {"train": list(train), "val": list(val)})


def row(place, objects=False, labels=None, longest=None, classes=CLASSES):
    [source] = sources(place, objects=objects)
    return folders.read_row(source, classes, labels or {}, longest)


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_row_by_hand(place):
    image, classes, _ = draw(0)
    save(place, image=image, mask=classes, suffix="jpg", quality=90)
    found = row(place)
    assert list(found) == voc.SCHEMA.names
    assert found["image"] == (place / "images/a.jpg").read_bytes()
    np.testing.assert_array_equal(decode_mask(found["class_mask"]), classes)
    # two squares that do not touch: (8, 5) of side 20 and class 1, (40, 30) of side 25 and class 2
    assert list(found["instance_classes"]) == [1, 2]
    assert found["instance_boxes"] == [[8, 5, 20, 20], [40, 30, 25, 25]] and list(found["instance_areas"]) == [400, 625]
    assert (found["height"], found["width"], found["source"], found["split"]) == (60, 80, "folders", "train")


def test_objects_are_connected_parts_corners_included_and_specks_are_none():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 2:6] = 1  # 12 px, and by its corner 12 more
    mask[5:8, 6:10] = 1
    mask[10:14, 20:25] = 1
    mask[10:14, 25:29] = 2  # touches it, of another class
    mask[18, 0:9] = 2  # 9 px
    mask[0] = VOID
    found = folders.components(mask)
    assert (found[0] == VOID).all() and (found[18] == 0).all()
    assert found[3, 3] == found[6, 8] == 1 and found[11, 21] == 2 and found[11, 26] == 3
    assert set(np.unique(found)) == {0, 1, 2, 3, VOID}


def test_a_class_in_specks_has_its_largest_as_an_object():
    mask = np.zeros((20, 30), np.uint8)
    mask[::4, ::4] = 1  # 40 px, alone
    mask[1, 0] = 1  # 2 px
    mask[19, 20:29] = 2  # 9 px: too few to need an object
    found = folders.components(mask)
    assert found[0, 0] == found[1, 0] == 1 and (found > 0).sum() == 2


def test_of_too_many_parts_the_largest_are_objects():
    mask = np.zeros((100, 200), np.uint8)
    for number in range(300):
        y, x = divmod(number, 40)
        mask[y * 6 : y * 6 + 3, x * 5 : x * 5 + 4] = 1  # 12 px
    mask[99, 100:111] = 1  # 11 px: the smallest
    found = folders.components(mask)
    assert found.max() == 254 and (found[99] == 0).all() and (found > 0).sum() == 254 * 12


def test_object_masks_are_numbered_anew(place):
    objects = np.zeros((60, 80), np.int32)
    objects[5:25, 8:28], objects[30:55, 40:65] = 1001, 255  # 255 is void in 8 bits alone
    save(place, objects=Image.fromarray(objects.astype(np.uint16)))
    found = row(place, objects=True)
    assert list(found["instance_classes"]) == [2, 1]
    assert (decode_mask(found["instance_mask"])[10, 10], decode_mask(found["instance_mask"])[40, 50]) == (2, 1)
    eight = objects.clip(0, 255).astype(np.uint8)
    eight[5:25, 8:28], eight[30:55, 50:65] = 7, 0
    save(place, objects=eight)  # the left part of the second square is 255, void; its class has no other object
    found = row(place, objects=True)
    assert list(found["instance_classes"]) == [1, 2]
    assert found["instance_boxes"] == [[8, 5, 20, 20], [40, 30, 25, 25]]  # the connected part


def test_objects_that_contradict_the_classes(place):
    objects = np.zeros((60, 80), np.uint8)
    objects[0:4, 60:70] = 9
    save(place, objects=objects)
    refused(lambda: row(place, objects=True), "objects/a.png: object 9", "40 px are of the background")
    mapped = {"background": [0, "others"], "two": [2]}
    objects[5:25, 8:28], objects[30:55, 40:65] = 1, 2
    save(place, objects=objects)
    found = row(place, objects=True, labels=mapped, classes=["background", "two"])
    assert list(found["instance_classes"]) == [1] and found["instance_boxes"] == [[40, 30, 25, 25]]
    objects[:] = 3
    save(place, objects=objects, mask=np.repeat([[1, 2]], 40, 1).repeat(60, 0).astype(np.uint8))
    refused(lambda: row(place, objects=True), "object 3", "several classes")
    many = np.arange(60 * 80).reshape(60, 80) // 10
    save(place, objects=Image.fromarray(many.astype(np.uint16)), mask=np.ones((60, 80), np.uint8))
    refused(lambda: row(place, objects=True), "479 objects in one image; allowed: 254")


def test_labels():
    table = folders.label_table(CLASSES, {})
    assert [table[number] for number in (0, 1, 2, 3, 254, 255, 256)] == [0, 1, 2, -1, -1, VOID, -1]
    labels = {"background": [0, "others"], "one": [7, 300], "two": [255], "void": [9]}
    table = folders.label_table(CLASSES, labels)
    assert [table[number] for number in (0, 1, 7, 300, 255, 9)] == [0, 0, 1, 1, 2, VOID]
    table = folders.label_table(CLASSES, {"background": [0], "one": [1], "two": [2], "void": ["others"]})
    assert [table[number] for number in (0, 1, 3, 255)] == [0, 1, VOID, VOID]


def test_an_unknown_number_names_the_mask(place):
    mask = draw(0)[1]
    mask[0, 0] = 3
    save(place, mask=mask)
    refused(lambda: row(place), "masks/a.png: holds 3", "0 to 2 (dataset.classes) and 255", "[0, others]")
    labels = {"background": [0], "one": [1], "two": [2]}
    refused(lambda: row(place, labels=labels), "masks/a.png: holds 3", "dataset.labels")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_few_bits_keep_their_numbers(place, bits):
    """Pillow stretches them to 0..255 when it reads, and writes none: these bytes are made here."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    numbers = np.arange(16) % min(2**bits, 3)
    digits = "".join(f"{number:0{bits}b}" for number in numbers)
    line = b"\0" + bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 2, bits, 0, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(line * 2)) + chunk(b"IEND", b"")
    save(place, image=np.zeros((2, 16, 3), np.uint8))
    (place / "masks/a.png").write_bytes(data)
    np.testing.assert_array_equal(decode_mask(row(place)["class_mask"]), [numbers] * 2)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "gif"])
def test_other_formats_of_masks(place, suffix):
    save(place)
    (place / "masks/a.png").unlink()
    Image.fromarray(draw(0)[1]).save(place / f"masks/a.{suffix}")
    np.testing.assert_array_equal(decode_mask(row(place)["class_mask"]), draw(0)[1])


def test_pictures_of_every_kind(place):
    image = draw(0)[0]
    red = np.zeros((60, 80, 4), np.uint8)
    red[:, :40] = (200, 0, 0, 255)  # the rest is transparent
    kinds = {
        "bmp": (Image.fromarray(image), image),
        "tif": (Image.fromarray(image[..., 0].astype(np.uint16) * 257), np.repeat(image[..., :1], 3, 2)),  # 16 bits
        "gif": (Image.fromarray(image[..., 0]), np.repeat(image[..., :1], 3, 2)),
        "webp": (Image.fromarray(red), None),
    }
    for suffix, (picture, expected) in kinds.items():
        save(place, image=picture, suffix=suffix, **({"lossless": True} if suffix == "webp" else {}))
        found = row(place)
        assert found["image"][:4] == b"\x89PNG"
        pixels = decode_image(found["image"])
        if expected is None:
            assert pixels[0, 0].tolist() == [200, 0, 0] and pixels[0, 79].tolist() == [255] * 3
        else:
            np.testing.assert_array_equal(pixels, expected)
        (place / f"images/a.{suffix}").unlink()
    save(place, image=Image.fromarray(image))
    assert row(place)["image"] == (place / "images/a.png").read_bytes()


@pytest.mark.parametrize("turn", range(2, 9))
def test_photographs_that_exif_turns(place, turn):
    """The upright picture is Pillow's own; a mask may be drawn on it or, where the sizes differ, on the stored one."""
    from PIL import ImageOps

    image = np.zeros((60, 80, 3), np.uint8)
    image[:10, :20] = 255
    stored = np.zeros((60, 80), np.uint8)
    stored[:10, :20] = 1
    exif = Image.Exif()
    exif[0x0112] = turn
    save(place, image=image, mask=stored, suffix="jpg", exif=exif, quality=100, subsampling=0)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(place / "images/a.jpg")).convert("RGB"))
    if turn >= 5:  # 60 x 80 in storage, 80 x 60 upright
        found = row(place)
        assert (found["height"], found["width"]) == (80, 60)
        mask = decode_mask(found["class_mask"])
        assert (mask == (upright[..., 0] > 128)).mean() > 0.99
    Image.fromarray((upright[..., 0] > 128).astype(np.uint8)).save(place / "masks/a.png")
    found = row(place)
    np.testing.assert_array_equal(decode_image(found["image"]), upright)
    np.testing.assert_array_equal(decode_mask(found["class_mask"]), upright[..., 0] > 128)


def test_large_images_are_reduced_with_their_masks(place):
    image, mask = np.zeros((120, 200, 3), np.uint8), np.zeros((120, 200), np.uint8)
    image[:, 100:], mask[:, 100:] = 100, 2
    save(place, image=image, mask=mask, objects=mask)
    found = row(place, longest=100, objects=True)
    assert (found["height"], found["width"]) == (60, 100)
    np.testing.assert_array_equal(decode_image(found["image"]), image[::2, ::2])
    np.testing.assert_array_equal(decode_mask(found["class_mask"]), mask[::2, ::2])
    assert found["instance_boxes"] == [[50, 0, 50, 60]]
    assert row(place, longest=200)["image"] == (place / "images/a.png").read_bytes()


def test_files_that_cannot_be_used(place):
    def damaged(name, data, *words):
        kept = (place / name).read_bytes()
        (place / name).write_bytes(data)
        refused(lambda: row(place), name, *words)
        (place / name).write_bytes(kept)

    def encoded(array, kind):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind)
        return buffer.getvalue()

    save(place)
    image, mask, _ = draw(0)
    damaged("images/a.png", b"", "no picture that Pillow reads", "take it off the list")
    damaged("images/a.png", b"<html>", "no picture that Pillow reads")
    damaged("images/a.png", (place / "images/a.png").read_bytes()[:-300], "truncated")
    damaged("masks/a.png", b"", "does not decode")
    damaged("masks/a.png", encoded(image, "PNG"), "has colours (mode RGB), not numbers")
    damaged("masks/a.png", encoded(mask, "JPEG"), "is a JPEG, which does not keep numbers")
    damaged("masks/a.png", encoded(mask[:, :-1], "PNG"), "79x60 px, its image 80x60")
    damaged("masks/a.png", encoded(mask.astype(np.float32), "TIFF"), "mode F")


def test_names_without_partners(place):
    save(place)
    save(place, "b")
    (place / "masks/b.png").rename(place / "masks/b_mask.png")
    refused(lambda: sources(place, ["a", "b"]), "masks: no b.png (there is b_mask.png) for 1 of 2 images", "rename or")
    refused(lambda: sources(place, ["a", "c"]), "images: no picture c for 1 of 2 listed names")
    save(place, "b", objects=draw(0)[2])
    (place / "masks/b.png").unlink()
    refused(lambda: sources(place, ["a"], objects=True), "objects: no a.png for 1 of 1 images")
    Image.fromarray(draw(0)[1]).save(place / "masks/b.jpg")
    refused(lambda: sources(place, ["b"]), "no b.png (there is b.jpg)")
    Image.fromarray(draw(0)[0]).save(place / "images/a.jpg")
    refused(lambda: sources(place), "a.jpg and a.png have one name")
    refused(lambda: sources(place, ["a"], ["a"]), "a: is in both lists")


def test_lists(tmp_path):
    def read(data):
        (tmp_path / "train.txt").write_bytes(data)
        return folders.read_list(folders.File(tmp_path / "train.txt"))

    assert read("\ufeffa.b\nimages/cat 1.JPG\r\n\n ü.png \n".encode()) == ["a.b", "cat 1", "ü"]
    refused(lambda: read(b"\n"), "train.txt: is empty")
    refused(lambda: read(b"a\na.png"), "names a twice")
    refused(lambda: read("a".encode("utf-16")), "not UTF-8")
    refused(lambda: folders.read_list(folders.File(tmp_path / "none.txt")), "none.txt: No such file")


def test_folders_that_hold_nothing_or_are_none(tmp_path):
    refused(lambda: list_files(tmp_path / "none"), "none: no such folder")
    refused(lambda: list_files(tmp_path), "holds no files; name")
    (tmp_path / "inner").mkdir()
    refused(lambda: list_files(tmp_path), "folders in it are not looked into")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / ".hidden").touch()
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert [path.name for path in list_files(tmp_path)] == ["a", "b"]
    (tmp_path / "c\nd").touch()
    refused(lambda: list_files(tmp_path), r"'c\nd'", "rename it")


def test_a_file_that_changes_meanwhile(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    file = folders.File(tmp_path / "a", hashlib.sha256(b"1").hexdigest())
    assert file.read() == b"1"
    (tmp_path / "a").write_bytes(b"2")
    refused(file.read, "changed since `dvc repro` began")
