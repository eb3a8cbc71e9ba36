"""Data set and proposals -> the tables of training windows of stage 1 and stage 2 (paper 4.2, 6.1).

A row of data/crops/stage{1,2}.parquet: `image_id` · `x`, `y`, `side_x`, `side_y` of the window in px, which may begin
before the image and end beyond it · `instance` the object that it was made for (stage 1: the only one that keeps its
class) · `class_id` of that object · `copies` how often the window occurs in an epoch.
"""

import argparse
from pathlib import Path

import pandas as pd
import pyarrow as pa
from PIL import Image

from deconvnet import crops, tables
from deconvnet.errors import InputError
from deconvnet.files import together, whole
from experiment import params as parameters
from experiment.cli import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.crops", description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("stage1", "stage2"))
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--proposals", type=Path, help="folder of the proposals' shards (stage2)")
    parser.add_argument("--out", type=Path, required=True, help="table of windows, parquet")
    parser.add_argument("--balance", type=Path, required=True, help="objects, windows and examples per class, CSV")
    parser.add_argument("--render", type=Path, required=True, help="contact sheet of windows and their labels, PNG")
    options = parser.parse_args(arguments)
    if (options.proposals is None) != (options.stage == "stage1"):
        parser.error("--proposals goes with stage2, and only with it")
    params = parameters.load()
    classes = len(params.dataset.classes)
    split, around = params.crops.split, (params.crops.context, params.crops.square)
    if options.stage == "stage1":
        per_class = params.crops.stage1.per_class
        frame, object_classes = crops.find_windows(options.dataset, split, *around, classes=classes)
        check_canvas(crops.sizes(options.dataset, split), frame["image_id"], params.train_fcn.canvas)
    else:
        per_class, min_iou = params.crops.stage2.per_class, params.crops.stage2.min_iou
        frame, object_classes = crops.find_windows(options.dataset, split, *around, options.proposals, min_iou, classes)
    if not len(frame):
        remedy = "lower crops.stage2.min_iou or look at the proposals" if options.proposals else "annotate objects"
        raise InputError(f"{options.dataset}: {options.stage} has no window; {remedy}")
    frame["copies"] = crops.balance(frame["class_id"].to_numpy(), per_class, params.crops.seed, params.crops.max_copies)
    balanced = crops.count_by_class(frame, object_classes, params.dataset.classes)
    frame = frame[frame["copies"] > 0]
    sheet = crops.render(options.dataset, frame, options.stage == "stage1" and params.crops.context != "whole")
    with together():
        tables.write(options.out, pa.Table.from_pandas(frame, crops.SCHEMA, preserve_index=False))
        with whole(options.balance) as file:
            balanced.to_csv(file, index=False)
        with whole(options.render) as file:
            Image.fromarray(sheet).save(file, "PNG")
    missing = balanced["class"][balanced["examples"] == 0]
    without = f"; no window of {', '.join(missing)}" if len(missing) else ""
    print(
        f"{options.out}: {len(frame):,} windows of {len(balanced) - len(missing)} classes, "
        f"{balanced['examples'].sum():,} examples per epoch, {per_class:,} of a class at most{without}"
    )


def check_canvas(sizes: pd.DataFrame, image_ids: pd.Series, canvas: tuple[int, int]) -> None:
    """Raise InputError where an image with a window does not fit FCN-8s's canvas (height, width).

    FCN-8s trains on these images whole, but only days from now: better to know at once.
    """
    sizes = sizes[sizes["image_id"].isin(image_ids)]
    large = sizes[(sizes["height"] > canvas[0]) | (sizes["width"] > canvas[1])]
    if len(large):
        first = large.iloc[0]
        enough = [max(32, int(sizes[side].max())) for side in ("height", "width")]
        raise InputError(
            f"params.yaml: train_fcn.canvas: {list(canvas)} (height, width) is too small for {first['image_id']}, an "
            f"image of {first['height']}x{first['width']}; {enough} would do for all training images"
        )


if __name__ == "__main__":
    run(main)
