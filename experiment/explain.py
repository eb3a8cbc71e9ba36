"""What the networks see in a crop of a picture: a PNG for each method, and a montage of all.

With --classifier: the pixels that the score of a class depends on, by vanilla and guided backpropagation, Zeiler and
Fergus's deconvnet, Grad-CAM and guided Grad-CAM; and what the strongest unit of a layer looks at (features). With
--model: the maps of DeconvNet's decoder, of each layer the channel with the largest mean (paper, figure 4). How to read
them: docs/explain.md.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deconvnet.errors import InputError
from deconvnet.explain import METHODS, attribute, load_classifier, project
from deconvnet.files import whole
from deconvnet.images import contact_sheet, cut_window
from deconvnet.inference.photos import read_photo
from deconvnet.nets import files
from deconvnet.nets.deconvnet import BLOCKS
from deconvnet.nets.vgg import Classifier
from experiment.cli import run
from experiment.report.activations import activations

SIDE = 288  # px of a cell, at least; pixels stay squares
COLUMNS = 6
FEATURES = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")  # each block's last
TITLES = {
    "gradient": "backpropagation", "guided": "guided backpropagation", "deconvnet": "deconvnet",
    "grad_cam": "Grad-CAM", "guided_grad_cam": "guided Grad-CAM",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    title: str
    picture: np.ndarray  # uint8 (S, S, 3)


def look(picture: np.ndarray, window: list[int] | None, side: int) -> np.ndarray:
    """A window [x, y, width, height] of a picture (H, W, 3), or all of it, as a net sees it: uint8 (side, side, 3)."""
    if window is not None:
        picture, _ = cut_window(picture, np.zeros(picture.shape[:2], np.uint8), np.array(window))
    smooth = cv2.INTER_AREA if max(picture.shape[:2]) > side else cv2.INTER_LINEAR
    return cv2.resize(picture, (side, side), interpolation=smooth)


def batch(crop: np.ndarray) -> Tensor:
    """uint8 (S, S, 3) -> float32 (1, 3, S, S)."""
    return torch.from_numpy(crop).permute(2, 0, 1)[None].float()


def signed(values: Tensor) -> np.ndarray:
    """(1, 3, S, S) -> uint8 (S, S, 3): 0 is grey, the largest half of a percent is cut off."""
    values = values[0].permute(1, 2, 0).numpy()
    scale = np.percentile(abs(values), 99.5) or abs(values).max() or 1
    return np.rint(127.5 + 127.5 * (values / scale).clip(-1, 1)).astype(np.uint8)


def heat(values: np.ndarray) -> np.ndarray:
    """(H, W) -> uint8 (H, W, 3): the lowest value black, the highest light yellow."""
    levels = np.rint(255 * (values - values.min()) / max(np.ptp(values), 1e-12)).astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]


def classified(net: Classifier, layer: str, crop: np.ndarray, target: int, head: str) -> dict[str, list[Cell]]:
    """The cells of each method for the class `target`, and those of `features`. head: how the class is called."""
    images, found = batch(crop), {}
    for method in METHODS:
        if method == "deconvnet":
            values, _ = project(net, images, "score", target)
        else:
            values = attribute(method, net, getattr(net.encoder, layer), images, target)
        if method == "grad_cam":
            picture = cv2.addWeighted(crop, 0.5, heat(values[0, 0].numpy()), 0.5, 0)
        else:
            picture = signed(values)
        found[method] = [Cell(f"{TITLES[method]}: {head}", picture)]
    found["features"] = []
    for name in FEATURES:
        values, channel = project(net, images, name)
        found["features"].append(Cell(f"{name}, channel {channel}, deconvnet", signed(values)))
    return found


def decoded(path: Path, picture: np.ndarray, window: list[int] | None, target: str | None) -> list[Cell]:
    """Maps of a DeconvNet's decoder: what leaves each block, what unpooling makes of it, and the scores of a class."""
    net, about = files.load(path)
    if net.spec["kind"] != "deconvnet":
        raise InputError(f"{path}: a net of kind {net.spec['kind']}; --model wants a DeconvNet")
    crop = look(picture, window, net.encoder.size.input_size)
    maps = activations(net, crop)
    names = list(about.get("classes") or map(str, range(len(maps["score"]))))
    best = 1 + int(maps["score"][1:].max((1, 2)).argmax())  # 0 is the background
    chosen = best if target is None else number(target, names, path)
    shown = [f"{kind}{block}{'' if kind == 'unpool' else f'_{len(layers)}'}" for block, layers in BLOCKS.items()
             for kind in ("unpool", "deconv")]  # fmt: skip
    cells = [Cell("DeconvNet's input", crop)]
    for name in ["fc6_deconv", *shown]:
        channel = int(maps[name].mean((1, 2)).argmax())
        cells.append(Cell(f"{name}, channel {channel} of {len(maps[name])}", heat(maps[name][channel])))
    return [*cells, Cell(f"score: {names[chosen]}", heat(maps["score"][chosen]))]


def number(target: str, names: list[str], path: Path) -> int:
    """A class by its name or number."""
    if target in names:
        return names.index(target)
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    some = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    raise InputError(f"--target {target[:60]}: no class of {path}; allowed: {some}, or 0 to {len(names) - 1}")


def drawn(cells: list[Cell], side: int, columns: int) -> np.ndarray:
    """Cells as one picture, each of `side` px with its title above."""
    font, strip = ImageFont.load_default(14), 22
    sheet = []
    for cell in cells:
        picture = cell.picture
        if max(picture.shape) != side:
            picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_NEAREST)
        page = Image.new("RGB", (side, side + strip), "white")
        page.paste(Image.fromarray(picture), (0, strip))
        ImageDraw.Draw(page).text((2, strip / 2), cell.title, "black", font, anchor="lm")
        sheet.append(np.asarray(page))
    return contact_sheet(sheet, min(columns, len(sheet)), gap=8)


def rows(groups: list[list[Cell]]) -> list[Cell]:
    """The cells of all groups, each filled up with blanks to whole rows."""
    blank, cells = Cell("", np.full((1, 1, 3), 255, np.uint8)), []
    for group in groups:
        cells += group + [blank] * (-len(group) % COLUMNS)
    return cells


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiment.explain", description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="any picture")
    parser.add_argument("--model", type=Path, help="a DeconvNet, for the maps of its decoder")
    parser.add_argument("--classifier", type=Path, help="an encoder of pretrain, or VGG-16 in torchvision's names")
    parser.add_argument("--window", type=int, nargs=4, metavar=("X", "Y", "WIDTH", "HEIGHT"), help="the crop, in px; "
                        "all of the picture by default")  # fmt: skip
    parser.add_argument("--target", help="the class to explain, by name or number; the likeliest by default")
    parser.add_argument("--out", type=Path, default="explained", help="folder for the results; explained by default")
    options = parser.parse_args(arguments)
    if not options.model and not options.classifier:
        raise InputError("nothing to explain: name a --classifier, a --model (DeconvNet), or both")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"{options.out}: is a file, but a folder is wanted; choose another --out")
    picture = read_photo(options.picture)
    if options.window:
        x, y, width, height = options.window
        if not (0 < width <= 32768 and 0 < height <= 32768):
            raise InputError(f"--window {x} {y} {width} {height}: allowed: sides of 1 to 32768 px")
        if x >= picture.shape[1] or y >= picture.shape[0] or x + width <= 0 or y + height <= 0:
            size = "x".join(map(str, picture.shape[1::-1]))
            raise InputError(f"--window {x} {y} {width} {height}: outside of {options.picture}, which has {size} px")
    pictures, groups, said = {}, [], []
    if options.classifier:
        net, names, missing = load_classifier(options.classifier)
        side = net.encoder.size.input_size
        crop = look(picture, options.window, side)
        with torch.no_grad():
            shares = net(batch(crop))[0].softmax(0)
        target = number(options.target, names, options.classifier) if options.target else int(shares.argmax())
        head = names[target]
        if missing:
            head = "a random class"
            print(f"{options.classifier}: lacks {', '.join(missing)}: random here, so nothing that a class's maps show "
                  "is evidence of that class; features are real up to the first missing layer")  # fmt: skip
        best = ", ".join(f"{names[i]} {shares[i]:.2f}" for i in shares.topk(min(3, len(names))).indices.tolist())
        said.append("no trained classes" if missing else f"{best}; explained: {names[target]}")
        found = classified(net, "conv5_3", crop, target, head)
        groups += [[Cell("classifier's input", crop), *(cell for m in METHODS for cell in found[m])], found["features"]]
        pictures |= {name: (cells, side) for name, cells in found.items()}
    if options.model:
        cells = decoded(options.model, picture, options.window, options.target)
        groups.append(cells)
        pictures["activations"] = (cells, cells[0].picture.shape[0])
    sides = {name: side * -(-SIDE // side) for name, (_, side) in pictures.items()}
    sheets = {name: drawn(cells, sides[name], COLUMNS) for name, (cells, _) in pictures.items()}
    sheets["montage"] = drawn(rows(groups), max(sides.values()), COLUMNS)
    paths = {name: options.out / f"{options.picture.stem}_{name}.png" for name in sheets}
    for path in paths.values():
        if path.is_dir() or path.resolve() == options.picture.resolve():
            raise InputError(f"{path}: would be overwritten by a result; choose another --out")
    for name, path in paths.items():
        with whole(path) as temporary:
            Image.fromarray(sheets[name]).save(temporary, "PNG")
    print(f"{options.picture}: {'; '.join([*said, f'{len(paths)} pictures'])} in {options.out}/")


if __name__ == "__main__":
    run(main)
