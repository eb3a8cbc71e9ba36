"""Trained models on anybody's pictures.

from deconvnet import Predictor

predictor = Predictor("deconvnet.pt", fcn="fcn8s.pt", crf=True)
result = predictor("photo.jpg")
result.save("photo_labels.png")
print(result.classes)
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from deconvnet import settings
from deconvnet.ensemble import combine
from deconvnet.errors import InputError
from deconvnet.inference.models import check_classes, load_net
from deconvnet.inference.photos import read_photo, shrink
from deconvnet.inference.results import Result
from deconvnet.inference.whole_images import by_images
from deconvnet.inference.windows import by_windows, select
from deconvnet.proposals import EdgeBoxes

GROUP = 16  # pictures, reduced, in memory at once

Picture = str | Path | Image.Image | np.ndarray  # a file, a PIL image, or uint8 (H, W, 3) RGB


class Predictor:
    """DeconvNet, FCN-8s, or the ensemble of both, with a CRF on top if wanted.

    model: file of a DeconvNet, or of an FCN-8s alone. fcn: file of an FCN-8s; the ensemble of both then predicts.
    crf: True, or settings of its own, for the fully connected CRF (needs `pip install deconvnet[crf]`).
    proposals: settings of EdgeBoxes. Without them, structured edges (as the paper's) if an `edge_model` file is given
    (opencv_extra's structured forest), else gradient edges, which need no file and find somewhat worse boxes.
    inference, ensemble: how scores are computed and put together; the defaults are the paper's. longest: px; a picture
    with a longer side is computed at that size, and its scores (with a CRF its labels) are enlarged bilinearly; the
    default is the longer side of FCN-8s's canvas, or 500 (VOC's) for DeconvNet alone. device: a GPU if there is one.

    Names of the classes, how windows are made of boxes, FCN-8s's canvas and scale come from the model files.
    A model of whole images (settings.Crops.context "whole") sees each picture at once and needs no proposals.
    Where EdgeBoxes finds nothing, in flat or tiny pictures, DeconvNet sees nothing: all is background.

    Raises InputError for a file that is no such model, for two models of different classes, and for a missing or bad
    edge model.
    """

    def __init__(
        self, model: str | Path, fcn: str | Path | None = None, crf: bool | settings.Crf | None = None, *,
        proposals: settings.EdgeBoxes | None = None, edge_model: str | Path | None = None,
        inference: settings.Inference | None = None, ensemble: settings.Ensemble | None = None,
        longest: int | None = None, device: str | torch.device | None = None,
    ):  # fmt: skip
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.inference = inference or settings.Inference()
        self.ensemble = ensemble or settings.Ensemble()
        self._crf = settings.Crf() if crf is True else crf or None
        self._refine = _import_crf() if self._crf else None
        self.net, about = self._member(model, ("deconvnet",) if fcn else ("deconvnet", "fcn"))
        self.classes = tuple(_entry(model, about, "classes"))
        check_classes(model, self.net, about, self.classes, "its own list of names; train it again")
        self.fcn = None
        whole = [(model, about)] if self.net.spec["kind"] == "fcn" else []
        if fcn:
            self.fcn, other = self._member(fcn, ("fcn",))
            check_classes(fcn, self.fcn, other, self.classes, f"{model}; both must be trained on one data set")
            whole.append((fcn, other))
        self.canvas, self.scale = None, 1.0
        for path, entries in whole:
            self.canvas, self.scale = tuple(_entry(path, entries, "canvas")), entries.get("scale", 1.0)
        self.detector, self.windows = None, None
        if self.net.spec["kind"] == "deconvnet":
            self.windows = _entry(model, about, "windows")
            self.detector = None if self.windows["context"] == "whole" else _detector(proposals, edge_model)
        self.longest = longest or max(self.canvas or settings.FcnTraining().canvas)

    def __call__(self, pictures: Picture | Iterable[Picture]) -> Result | list[Result]:
        """The result of one picture, or a list of results of several."""
        if isinstance(pictures, (str, Path, Image.Image, np.ndarray)):
            return next(self.stream([pictures]))
        return list(self.stream(pictures))

    def stream(
        self, pictures: Iterable[Picture], failed: Callable[[Picture, Exception], None] | None = None
    ) -> Iterator[Result]:
        """The results of many pictures, in their order, with few of them in memory at once.

        failed: called with a picture that cannot be read and the error, and the picture is left out; without it the
        error is raised.
        """
        remaining = iter(pictures)
        while group := list(itertools.islice(remaining, GROUP)):
            readable = []  # (source, image or None for one to be read again, reduced image)
            for picture in group:
                try:
                    image = read_photo(picture)
                except (InputError, ValueError) as error:
                    if failed is None:
                        raise
                    failed(picture, error)
                    continue
                small = shrink(image, self.longest)
                source = picture if isinstance(picture, (str, Path)) else None
                # a large file is read once more at its turn, so that few large pictures are in memory
                readable.append((source, None if source and small is not image else image, small))
            results = self.score([small for *_, small in readable])
            for (source, image, small), (maps, windows) in zip(readable, results, strict=True):
                refined = self._refine(maps, small, self._crf) if self._refine else None
                image = read_photo(source) if image is None else image
                yield Result(image, maps, refined, self.classes, windows, source)

    def score(self, images: list[np.ndarray]) -> Iterator[tuple[np.ndarray, int | None]]:
        """Of each image, uint8 (h, w, 3), its scores float32 (C, h, w) at its own size and the number of windows seen.

        The number is None for FCN-8s alone.
        """
        if self.windows:
            params, precision = self.inference.deconvnet, self.inference.precision
            seen = [self.propose(image) for image in images]
            scored = (maps for maps, _ in by_windows(self.net, zip(images, seen, strict=True), params, precision))
        else:
            seen, scored = [None] * len(images), self._at_once(self.net, images)
        others = self._at_once(self.fcn, images) if self.fcn else [None] * len(images)
        for windows, maps, other in zip(seen, scored, others, strict=True):
            maps = maps.cpu().numpy()
            if other is not None:
                maps = combine(maps, other.cpu().numpy(), self.ensemble.method)
            yield maps, None if windows is None else len(windows)

    def propose(self, image: np.ndarray) -> np.ndarray:
        """The windows int32 (n, 4) that DeconvNet sees of an image uint8 (H, W, 3), best first: x, y, sides in px."""
        params = self.inference.deconvnet
        boxes = self.detector(image)[0] if self.detector else np.zeros((0, 4))
        context, square = self.windows["context"], self.windows["square"]
        return select(boxes, context, square, params.min_side, params.proposals, image.shape[:2])

    def _at_once(self, net: nn.Module, images: list[np.ndarray]) -> Iterator[Tensor]:
        return by_images(net, images, self.canvas, self.inference.fcn_batch, self.inference.precision, self.scale)

    def _member(self, path: str | Path, kinds: tuple[str, ...]) -> tuple[nn.Module, dict]:
        net, about = load_net(path, self.device, self.inference.precision)
        if net.spec["kind"] not in kinds:
            raise InputError(f"{path}: a net of kind {net.spec['kind']}; wanted here: {' or '.join(kinds)}")
        return net, about


def predict(net: nn.Module, picture: Picture) -> np.ndarray:
    """Class probabilities float32 (C, H, W) of a picture (H, W) that a net sees at once: no proposals, ensemble or CRF.

    net: a DeconvNet or an FCN, as `build` or `load` gives it, on any device. DeconvNet sees the picture resized to its
    input size, and its scores are resized back. For the paper's inference: `Predictor`.
    """
    image, training = read_photo(picture), net.training
    height, width = image.shape[:2]
    net.eval()
    try:
        if net.spec["kind"] == "fcn":
            (scores,) = by_images(net, [image], (height, width), 1, "float32")
        else:
            window = np.array([[0, 0, width, height]])
            ((scores, _),) = by_windows(net, [(image, window)], settings.WindowInference(), "float32")
    finally:
        net.train(training)
    return scores.softmax(0).cpu().numpy()


def _entry(path: str | Path, about: dict, name: str):
    if name not in about:
        raise InputError(f"{path}: does not say its {name}: made by an older version; train it again with this one")
    return about[name]


def _detector(proposals: settings.EdgeBoxes | None, edge_model: str | Path | None) -> EdgeBoxes:
    if proposals is None:
        proposals = settings.EdgeBoxes(edges="structured" if edge_model else "gradient")
    if proposals.edges == "structured" and not edge_model:
        raise InputError("proposals.edges is structured, which needs a file: give edge_model, or set edges to gradient")
    return EdgeBoxes(proposals, Path(edge_model) if edge_model else None)


def _import_crf() -> Callable:
    try:
        from deconvnet.crf import refine  # here: the wheel does not need pydensecrf
    except ImportError as error:
        raise InputError(f"the CRF needs pydensecrf ({error}); `pip install pydensecrf2`, or leave crf out") from None
    return refine
