"""Pictures of any kind and size -> what a trained model sees in them.

Of each picture, NAME.png: labels as a palette PNG in VOC's colours, of the picture's own size, upright by its EXIF
orientation · NAME_overlay.png: the picture, objects tinted, boundaries white, and a legend below · NAME.json: the
classes found, each with its `share` of the pixels, its mean `probability` over them (by the scores, before any CRF) and
their tight `box` [x, y, width, height] px · beside the options, the (height, width) `computed` and the number of
`windows` seen.

Proposals, inference, ensemble and CRF are computed as the parameter file says; where there is none, as the paper has
them, but with gradient edges unless --edge-model names a structured forest.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path

from PIL import Image

from deconvnet.errors import InputError
from deconvnet.files import LONGEST, together, whole
from deconvnet.inference.devices import own_device
from deconvnet.inference.photos import FORMATS
from deconvnet.inference.results import Result
from deconvnet.predictor import Predictor
from deconvnet.progress import progress
from experiment.cli import run
from experiment.params import load

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}  # looked for in folders


def outputs(paths: list[Path], out: Path) -> dict[Path, list[Path]]:
    """The files named and those in the folders named, each once, with their three outputs.

    Raises InputError where one is no picture, or where an output would overwrite another or a picture.
    """
    files = {}
    for path in paths:
        if not path.is_dir() and not path.is_file():
            there = "not a plain file" if os.path.lexists(path) else "No such file or directory"
            raise InputError(f"{path}: {there}; name pictures or folders")
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.glob("[!.]*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise InputError(f"{path}: no picture in this folder ({', '.join(sorted(SUFFIXES))}); name another")
        files |= {file.resolve(): file for file in inside}
    made, makers = {}, {}
    for file in files.values():
        try:
            Image.open(file, formats=FORMATS).close()
        except Image.UnidentifiedImageError:
            raise InputError(f"{file}: not a picture in a format that is read; leave it out") from None
        except Exception as error:
            raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}; name pictures or folders") from None
        made[file] = [out / f"{file.stem}{ending}" for ending in (".png", "_overlay.png", ".json")]
        for output in made[file]:
            if len(os.fsencode(output.name)) > LONGEST:
                raise InputError(f"{file}: its name is too long for its results; rename it")
            if output.resolve() in files or output.is_dir():
                raise InputError(f"{output}: would be overwritten by a result of {file}; choose another --out")
            if (other := makers.setdefault(output, file)) != file:
                raise InputError(f"{other} and {file}: both would become {output}; rename one, or predict it apart")
    return made


def make_predictor(options: argparse.Namespace) -> Predictor:
    """The predictor of the command's options and its parameter file, if there is one. Raises InputError."""
    device = own_device()
    path = options.params or (Path("params.yaml") if Path("params.yaml").is_file() else None)
    if path is None:
        predictor = Predictor(options.model, options.fcn, options.crf, edge_model=options.edge_model, device=device)
        if predictor.detector and not options.edge_model:
            print("no params.yaml and no --edge-model: proposals from gradient edges")
        return predictor
    params = load(path)
    edge_model = options.edge_model
    if edge_model is None and params.proposals.edges == "structured":
        edge_model = path.parent / params.fetch.edge_model.file
    predictor = Predictor(
        options.model, options.fcn, params.crf if options.crf else None, proposals=params.proposals,
        edge_model=edge_model, inference=params.infer, ensemble=params.ensemble, longest=max(params.train_fcn.canvas),
        device=device,
    )  # fmt: skip
    if (theirs := predictor.classes) != (ours := params.dataset.classes):
        pairs = zip(theirs, ours, strict=False)
        unequal = next((f"class {i} is {a!r}, there {b!r}" for i, (a, b) in enumerate(pairs) if a != b), "")
        difference = f"{len(theirs)} classes, there {len(ours)}" if len(theirs) != len(ours) else unequal
        raise InputError(
            f"{options.model}: trained on other classes than {path} names ({difference}); name with --params the "
            "params.yaml of the experiment that trained it"
        )
    return predictor


def report(result: Result, options: argparse.Namespace) -> dict:
    """What NAME.json holds."""
    classes = [{"class" if name == "name" else name: value for name, value in dataclasses.asdict(found).items()}
               for found in result.classes]  # fmt: skip
    height, width = result.labels.shape
    about = {"picture": str(result.source), "height": height, "width": width, "computed": list(result.computed)}
    about |= {"model": str(options.model), "fcn": options.fcn and str(options.fcn), "crf": options.crf}
    return about | {"windows": result.windows, "classes": classes}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiment.predict", description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="a picture, or a folder of them")
    parser.add_argument("--model", type=Path, required=True, help="DeconvNet, or FCN-8s alone")
    parser.add_argument("--fcn", type=Path, help="FCN-8s: predict with the ensemble of both")
    parser.add_argument("--crf", action="store_true", help="refine with the CRF")
    parser.add_argument("--out", type=Path, default="predicted", help="folder for the results; predicted by default")
    parser.add_argument("--params", type=Path, help="the experiment's; params.yaml if there is one here")
    parser.add_argument("--edge-model", type=Path, help="structured forest for EdgeBoxes; the experiment's by default")
    options = parser.parse_args(arguments)
    files = outputs(options.pictures, options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as error:
        raise InputError(f"{options.out}: {error.strerror}; choose a folder that can be written as --out") from None
    predictor = make_predictor(options)
    known = ", ".join(predictor.classes)
    print(f"{options.model}: knows {known}; whatever else a picture shows is labelled as one of them")
    failures = []
    with progress(total=len(files), unit="picture", desc="predict") as bar:

        def failed(file: Path, error: Exception) -> None:
            failures.append(str(error) if str(error).startswith(str(file)) else f"{file}: {error}")
            bar.update()

        for result in predictor.stream(files, failed):
            labels, overlay, about = files[result.source]
            with together():
                result.save(labels)
                result.save_overlay(overlay)
                with whole(about) as temporary:
                    temporary.write_text(json.dumps(report(result, options), indent=2) + "\n", encoding="utf-8")
            note = "; no proposals: DeconvNet sees nothing of it" if result.windows == 0 else ""
            bar.write(f"{result.source}: {', '.join(map(str, result.classes))}{note}")
            bar.update()
    print(f"{options.out}/: labels, overlay and report of {len(files) - len(failures)} pictures")
    if failures:
        raise InputError(f"{len(failures)} of {len(files)} pictures failed, the others are done: {'; '.join(failures)}")


if __name__ == "__main__":
    run(main)
