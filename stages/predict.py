"""Pictures of any kind and size -> what a trained model sees in them; no part of the DAG.

Of each picture, NAME.png: labels as a palette PNG in VOC's colours, of the picture's own size, upright by its EXIF
orientation · NAME_overlay.png: the picture, objects tinted, boundaries white · NAME.json: the classes found, each with
its `share` of the pixels, its mean `probability` over them (by the scores, before any CRF) and their tight `box`
[x, y, width, height] px · beside the options, the (height, width) `computed` and the number of `windows` seen.

Transparent parts lie on white. A picture larger than training saw, by the longer side of train_fcn.canvas, is computed
at that size and its scores (with --crf its labels) enlarged bilinearly. Where EdgeBoxes finds nothing, in flat or
tiny pictures, DeconvNet sees nothing: all background, as in stages/infer.py.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from stages import crf, ensemble, infer, proposals
from stages.cli import InputError, progress, run, whole
from stages.config import load
from stages.images import colour, encode_mask

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # looked for in folders
GROUP = 16  # pictures, reduced, in memory at once
STRIP = 1 << 24  # scores enlarged at once


def decode(data: bytes) -> np.ndarray:
    """A picture file's bytes -> uint8 (H, W, 3) RGB, upright; its first frame. Raises ValueError where that fails."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("floating-point pixels have no agreed white; save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"does not decode ({' '.join(str(error).split())[:200]})") from None


def reduced(image: np.ndarray, longest: int) -> np.ndarray:
    """The image, its longer side at most `longest` px."""
    factor = min(longest / max(image.shape[:2]), 1)
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarged(maps: Tensor, rows: range, height: int, width: int) -> Tensor:
    """Rows `rows` of maps float32 (C, h, w) resized bilinearly to (C, height, width)."""
    bottom = maps.shape[1] - 1
    y = ((torch.tensor(rows, dtype=torch.float64) + 0.5) * maps.shape[1] / height - 0.5).clamp(0, bottom)
    low, weight = y.long(), y.frac().float()[:, None]
    narrow = maps[:, low] * (1 - weight) + maps[:, (low + 1).clamp(max=bottom)] * weight  # (C, rows, w)
    return F.interpolate(narrow[None], (len(rows), width), mode="bilinear")[0]


def label(maps: np.ndarray, refined: np.ndarray | None, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 (C, h, w), the CRF's labels (h, w) if any -> labels uint8 (height, width), probabilities (C,).

    A class's probability is the mean of the scores' softmax over the pixels labelled so; 0 where it has none.
    """
    classes, scores = len(maps), torch.from_numpy(maps)
    if refined is not None:
        votes = torch.from_numpy(refined == np.arange(classes)[:, None, None]).float()
    labels, sums = np.empty((height, width), np.uint8), np.zeros(classes)
    step = max(STRIP // (classes * width), 1)
    for top in range(0, height, step):
        rows = range(top, min(top + step, height))
        strip = enlarged(scores, rows, height, width)  # (C, rows, width)
        best = (strip if refined is None else enlarged(votes, rows, height, width)).argmax(0)  # (rows, width)
        chosen = strip.softmax(0).gather(0, best[None])
        sums += np.bincount(best.flatten(), chosen.flatten(), classes)
        labels[top : top + len(rows)] = best
    return labels, sums / np.bincount(labels.ravel(), minlength=classes).clip(1)


def found(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> list[dict]:
    """What the labels (H, W) hold, by class number."""
    rows = []
    for number in np.unique(labels).tolist():
        mask = labels == number
        row = {"class": classes[number], "id": number, "share": round(float(mask.mean()), 6)}
        row |= {"probability": round(float(probabilities[number]), 4), "box": cv2.boundingRect(mask.astype(np.uint8))}
        rows.append(row)
    return rows


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): objects half in VOC's colours, boundaries between labels white."""
    tinted = np.where((labels > 0)[..., None], cv2.addWeighted(image, 0.5, colour(labels), 0.5, 0), image)
    brush = np.ones([2 + max(labels.shape) // 500] * 2, np.uint8)  # 2x2: a line of 1 px
    tinted[cv2.dilate(labels, brush) != cv2.erode(labels, brush)] = 255
    return tinted


class Predictor:
    """A trained model, or the ensemble of two, with all that its experiment's parameters say about inference."""

    def __init__(self, model: Path, fcn: Path | None, refine: bool, params: Path):
        self.classes = load(list[str], "dataset.classes", params)
        self.params, self.frame = load(infer.Params, "infer", params), infer.frame(params)
        self.method = load(ensemble.Params, "ensemble", params).method
        self.crf = load(crf.Params, "crf", params) if refine else None
        self.net = self.member(model, {"deconvnet"} if fcn else {"deconvnet", "fcn"})
        self.fcn = self.member(fcn, {"fcn"}) if fcn else None
        self.detector = None
        if self.net.spec["kind"] == "deconvnet":
            edge_model = params.parent / load(str, "fetch.edge_model.file", params)
            self.detector = proposals.EdgeBoxes(load(proposals.Params, "proposals", params), edge_model)

    def member(self, path: Path, kinds: set[str]) -> nn.Module:
        net = infer.load_net(path, self.classes, infer.own_device())
        if net.spec["kind"] not in kinds:
            raise InputError(f"{path}: a net of kind {net.spec['kind']}; wanted here: {' or '.join(sorted(kinds))}")
        return net

    def windows(self, image: np.ndarray) -> np.ndarray:
        boxes, _ = self.detector(image)
        return infer.select(boxes, self.params.deconvnet, self.frame, self.params.deconvnet.proposals)

    def at_once(self, net: nn.Module, images: list[np.ndarray]) -> Iterator[Tensor]:
        return infer.whole_images(net, images, self.frame.canvas, self.params.fcn_batch, self.params.precision)

    def __call__(self, images: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray | None, int | None]]:
        """Images uint8 (h, w, 3) -> of each the scores (C, h, w), the CRF's labels (h, w), the number of windows."""
        if self.detector:
            seen = [self.windows(image) for image in images]
            pairs, params = zip(images, seen, strict=True), self.params
            scores = (maps for maps, _ in infer.by_windows(self.net, pairs, params.deconvnet, params.precision))
        else:
            seen, scores = [None] * len(images), self.at_once(self.net, images)
        others = self.at_once(self.fcn, images) if self.fcn else [None] * len(images)
        for image, windows, maps, other in zip(images, seen, scores, others, strict=True):
            maps = maps.cpu().numpy()
            if other is not None:
                maps = ensemble.combine(maps, other.cpu().numpy(), self.method)
            refined = crf.refine(maps, image, self.crf) if self.crf else None
            yield maps, refined, None if windows is None else len(windows)


def pictures(paths: list[Path], out: Path) -> dict[Path, list[Path]]:
    """The files named and those in the folders named, each once, with their three outputs.

    Raises InputError where one is no picture, or where an output would overwrite another or a picture.
    """
    files = {}
    for path in paths:
        inside = sorted(p for p in path.glob("[!.]*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: no picture in this folder ({', '.join(sorted(SUFFIXES))}); name another")
        files |= {file.resolve(): file for file in inside}
    made, makers = {}, {}
    for file in files.values():
        try:
            Image.open(file).close()
        except Image.UnidentifiedImageError:
            raise InputError(f"{file}: not a picture in a format that Pillow reads; leave it out") from None
        except Exception as error:
            raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}; name pictures or folders") from None
        made[file] = [out / f"{file.stem}{ending}" for ending in (".png", "_overlay.png", ".json")]
        for output in made[file]:
            if output.resolve() in files or output.is_dir():
                raise InputError(f"{output}: would be overwritten by a result of {file}; choose another --out")
            if (other := makers.setdefault(output, file)) != file:
                raise InputError(f"{other} and {file}: both would become {output}; rename one, or predict it apart")
    return made


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="+", metavar="IMAGE", help="a picture, or a folder of them")
    parser.add_argument("--model", type=Path, required=True, help="DeconvNet, or FCN-8s alone")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--fcn", type=Path, help="FCN-8s: predict with the ensemble of both")
    parser.add_argument("--crf", action="store_true", help="refine with the CRF")
    parser.add_argument("--params", type=Path, default="params.yaml", help="the experiment's; params.yaml by default")
    options = parser.parse_args(arguments)
    files = pictures(options.pictures, options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as error:
        raise InputError(f"{options.out}: {error.strerror}; choose a folder that can be written as --out") from None
    predictor = Predictor(options.model, options.fcn, options.crf, options.params)
    failed = []
    with progress(total=len(files), unit="picture", desc="predict") as bar:
        for start in range(0, len(files), GROUP):
            group = []
            for file in list(files)[start : start + GROUP]:
                try:
                    image = decode(file.read_bytes())
                    group.append((file, image.shape[:2], reduced(image, max(predictor.frame.canvas))))
                except (OSError, ValueError) as error:
                    failed.append(f"{file}: {error}")
                    bar.update()
            results = predictor([image for _, _, image in group])
            for (file, size, image), (maps, refined, windows) in zip(group, results, strict=True):
                if windows == 0:
                    bar.write(f"{file}: no proposals: DeconvNet sees nothing of it")
                labels, probabilities = label(maps, refined, *size)
                if image.shape[:2] != size:
                    image = decode(file.read_bytes())  # again, so that few large pictures are in memory
                report = {"picture": str(file), "height": size[0], "width": size[1], "computed": list(maps.shape[1:])}
                report |= {"model": str(options.model), "fcn": options.fcn and str(options.fcn), "crf": options.crf}
                report |= {"windows": windows, "classes": found(labels, probabilities, predictor.classes)}
                tinted = cv2.imencode(".png", overlay(image, labels)[..., ::-1])[1].tobytes()
                contents = encode_mask(labels), tinted, (json.dumps(report, indent=2) + "\n").encode()
                for output, content in zip(files[file], contents, strict=True):
                    with whole(output) as temporary:
                        temporary.write_bytes(content)
                bar.update()
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} pictures failed, the others are done: {'; '.join(failed)}")


if __name__ == "__main__":
    run(main)
