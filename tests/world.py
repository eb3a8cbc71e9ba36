"""A data set of a few small pictures and an experiment folder of it, for the tests of training."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torchvision
import yaml
from PIL import Image

from deconvnet import settings, tables
from deconvnet.batches import Batches
from deconvnet.images import VOID, encode_mask
from deconvnet.nets import files
from deconvnet.nets.vgg import Classifier
from deconvnet.pixels import ImageStore
from deconvnet.settings import Size

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SIZE = {"width": 4, "fc_width": 16, "input_size": 64}
CLASSES = ["background", "red", "green", "blue"]
RUN = {
    "steps": 8, "batch": 8, "micro_batch": 4, "batch_norm_crops": None, "lr": 0.05, "momentum": 0.9,
    "encoder_lr": 1.0, "weight_decay": 5e-4, "warmup_steps": 2, "drop_at": [6], "drop": 0.1, "patience": 1,
    "held_out": 0.25, "held_out_crops": 6, "validate_every": 4, "checkpoint_minutes": 0, "statistics_passes": 2,
    "precision": "float32", "compile": False, "memory_gb": 1, "seed": 7,
}  # fmt: skip


def write_dataset(folder, images, seed=0):
    """One shard of `images` pictures with two objects each, of classes 1 to 3; returns its rows with decoded arrays."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(images):
        height, width = (int(side) for side in random.integers(50, 90, 2))
        image = random.integers(0, 80, (height, width, 3)).astype(np.uint8)
        classes, instances = np.zeros((2, height, width), np.uint8)
        boxes, kinds = [], [1 + number % 3, 1 + (number + 2) % 3]
        for instance, kind in enumerate(kinds, 1):
            x, y = random.integers(0, width - 26), random.integers(0, height - 26)
            part = np.s_[y : y + 24, x : x + 26]
            image[part] = np.array([(230, 40, 40), (40, 230, 40), (40, 40, 230)])[kind - 1]
            classes[part], instances[part] = kind, instance
            boxes.append([x, y, 26, 24])
        for mask in (classes, instances):
            mask[:2] = VOID
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")  # lossless, so that a test can compare pixels
        rows.append(
            {
                "image_id": f"2012_{number:06d}", "height": height, "width": width, "image": buffer.getvalue(),
                "class_mask": encode_mask(classes), "instance_mask": encode_mask(instances), "instance_boxes": boxes,
                "instance_classes": kinds, "pixels": image, "classes": classes, "instances": instances,
            }
        )  # fmt: skip
    kept = ["image_id", "height", "width", "image", "class_mask", "instance_mask"]
    folder.mkdir(exist_ok=True)
    tables.write(
        folder / "train-000.parquet", pa.Table.from_pylist([{name: row[name] for name in kept} for row in rows])
    )
    return rows


def crop_table(rows):
    """One window an object, half as large again, every third one twice."""
    table = [
        (row["image_id"], int(x) - 6, int(y) - 6, w + 12, h + 12, instance, kind)
        for row in rows
        for instance, ((x, y, w, h), kind) in enumerate(
            zip(row["instance_boxes"], row["instance_classes"], strict=True), 1
        )
    ]
    table = pd.DataFrame(table, columns=["image_id", "x", "y", "side_x", "side_y", "instance", "class_id"])
    return table.assign(copies=1 + (np.arange(len(table)) % 3 == 0))


def write_experiment(folder, images=12):
    """A data set, a crop table, an untrained encoder, an empty VGG-16 file and parameters."""
    table = crop_table(write_dataset(folder / "dataset", images))
    tables.write(folder / "crops.parquet", pa.Table.from_pandas(table, preserve_index=False))
    (folder / "vgg16.pth").touch()
    torch.manual_seed(3)
    net = Classifier(Size(**SIZE), len(CLASSES), 1e-5)
    files.save(folder / "encoder.pt", net.spec, net.state_dict(), {})
    write_params(folder)


def write_params(folder, changes=None, **run):
    """params.json: the paper's sections with tiny trainings. run: changes of every run; changes: of sections."""
    run = RUN | run
    sections = {
        "dataset": settings.Dataset(CLASSES), "proposals": settings.EdgeBoxes(), "crops": settings.Crops(),
        "pretrain": settings.Pretraining(Size(**SIZE), "imagenet1k_v1", 1e-5, 72, 0.2),
        "train": settings.Training(1e-5, resized=72), "reestimate": settings.Reestimation(5, 6),
        "train_fcn": settings.FcnTraining(None, (1.0, 1.0), 0.5, (96, 96)), "infer": settings.Inference(),
        "ensemble": settings.Ensemble(), "crf": settings.Crf(), "evaluate": settings.Evaluation(),
    }  # fmt: skip
    params = {name: dataclasses.asdict(section) for name, section in sections.items()}
    params["pretrain"]["run"] = params["train_fcn"]["run"] = params["train"]["stage1"] = params["train"]["stage2"] = run
    whole = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {name: whole[name] for name in ("root", "fetch", "report")}
    params["training"] = {name: run[name] for name in settings.SHARED}
    for name, values in (changes or {}).items():
        params[name] = params[name] | values
    (folder / "params.json").write_text(json.dumps(params))


def arguments(name, init="encoder.pt"):
    """The arguments of a training stage in a folder of `write_experiment`."""
    line = f"--dataset dataset --crops crops.parquet --out {name}.pt --last {name}-last.pt --curves {name}.csv"
    return f"{line} --metrics {name}.json --checkpoints checkpoints/{name} --params params.json --init {init}".split()


def pretraining_arguments(name, vgg16="vgg16.pth"):
    return [*arguments(name)[:-2], "--vgg16", vgg16]


def reestimation_arguments(out, model="s2.pt"):
    return f"--dataset dataset --crops crops.parquet --model {model} --out {out} --params params.json".split()


def vgg16_file(path):
    """A whole VGG-16 of width 64 and fc width 8, for crops of 64, in torchvision's names."""
    torch.manual_seed(0)
    state = torchvision.models.vgg16(num_classes=2).features.state_dict()
    state = {f"features.{name}": tensor for name, tensor in state.items()}
    state |= {"classifier.0.weight": torch.randn(8, 512 * 4), "classifier.0.bias": torch.randn(8)}
    state |= {"classifier.3.weight": torch.randn(8, 8), "classifier.3.bias": torch.randn(8)}
    torch.save(state, path)
    return state


def weights(path):
    return files.read(path)["state"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def crop_batches(folder, labels="scene", images=12, flip=True, fraction=0.25, size=64, resized=72, limit=6):
    """Batches of a fresh data set in `folder`."""
    table = crop_table(write_dataset(folder, images))
    store = ImageStore(folder, set(table["image_id"]), 4, 1.0, CPU)
    return Batches(store, table, labels, (resized,) * 2, (size,) * 2, flip, 0, fraction, limit, CPU)
