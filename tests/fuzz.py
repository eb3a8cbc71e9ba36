"""Damaged inputs by the thousand: every case ends in one clear line, or is accepted for a reason that is listed here.

    python tests/fuzz.py --seed 1 --cases 1000 [--family tables]

A case takes a tiny experiment, damages one of its inputs and calls a stage's own main in this process. Counted are
clean lines, accepted cases, and what must not be: tracebacks, hangs, accepted cases that no reason covers, half-written
or left-over files, writes outside the experiment's folder. The same seed gives the same cases. test_fuzz.py runs some.
"""

import argparse
import contextlib
import copy
import hashlib
import http.server
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import yaml
from PIL import Image

from deconvnet import download, settings, tables
from deconvnet.errors import InputError
from deconvnet.nets import files
from deconvnet.training import loop
from deconvnet.training.devices import Worker
from experiment import params as parameters
from experiment import predict
from experiment.cli import call
from stages import crf, crops, dataset, ensemble, evaluate, infer, proposals, report
from tests.conftest import SBD, VOC, draw, jpeg, mat, png, tar
from tests.damage import BYTES, PLACES, bomb, flipped, giant, grey4, members, place, saved
from tests.deconvnet.test_inference import make_net

ROOT = Path(__file__).parents[1]
SECONDS, WAITING = 60, 600  # of the processor and of the clock after which a case hangs; the slowest takes 3
MEMORY = 2 << 30  # bytes
# What is accepted, and why it may be.
JUSTIFIED = {
    "archives/none": "nothing was damaged",
    "archives/flip": "a JPEG bears changed bits; fetch's checksum guards the real archives",
    "archives/cut": "the padding after a tar's end was cut",
    "archives/zero": "as flip, and the padding of a tar",
    "archives/repeat a member": "tar: the last of a name counts",
    "archives/stray names": "names that nobody asks for are not read",
    "archives/flip mat": "as flip",
    "archives/CRLF": "line ends are white space",
    "parameters/another value": "it lies in the range of its key",
    "parameters/flip": "a comment or a letter of a name may be another",
    "parameters/cut": "a comment was cut",
    "tables/flip": "a bit of the footer that no value depends on: the values were read and are the same",
    "tables/zero": "as flip",
    "tables/wider type": "every value fits the type wanted",
    "tables/more columns": "columns that nobody asks for are not read",
    "tables/empty": "a shard of no images",
    "tables/other image": "an image of the same size is no damage that a table shows",
    "models/flip": "a bit of the file that no value depends on: the weights are the same",
    "models/zero": "as flip",
    "models/other weights": "finite weights of the right shapes are a model",
    "models/spec": "a value that changes no shape, as the dropout; checksums guard against damage",
    "models/about": "a value in its range, or one that inference does not use",
    "reports/flip": "a digit that no other report repeats: DVC's checksum guards it",
    "reports/cut": "nothing but a line's end was cut",
    "reports/value": "a value in its range that no other report repeats",
    "pictures/odd": "a picture, if an odd one",
    "pictures/flip": "a picture with other pixels",
    "pictures/place": "a folder is looked into",
    "server/odd": "the file arrived, and its checksum holds",
}


class Hang(BaseException):
    pass


@dataclass
class Case:
    """kind: "family/damage". run: calls a main. same: raises AssertionError where what was accepted is not the same."""

    kind: str
    run: object
    same: object = None


class World:
    """A tiny experiment, and the cases on it. Whatever a case damages is put back after it."""

    def __init__(self, base: Path):
        self.base, self.folder = base, base / "inner/experiment"
        self.folder.mkdir(parents=True)
        os.chdir(self.folder)
        self.params = yaml.safe_load((ROOT / "demo/params.yaml").read_text())
        self.params["root"] = str(ROOT)
        self.params["dataset"] = {"classes": ["background", "one", "two"], "shard_images": 8, "kind": "voc"}
        self.params["proposals"] |= {"boxes": 20, "min_box_area": 50, "recall": {
            "split": "val", "min_area": 1, "boxes": [5, 10], "iou": [0.5]}}  # fmt: skip
        for stage in ("stage1", "stage2"):
            self.params["crops"][stage]["per_class"] = 4
        self.params["infer"] |= {"growth": [1, 2], "precision": "float32"}
        self.params["infer"]["deconvnet"]["proposals"] = 2
        self.params["train_fcn"]["canvas"] = [64, 96]
        self.params["report"] = {"examples": 1, "side": 32}
        Path("params.yaml").write_text(yaml.safe_dump(self.params))
        self.voc, self.sbd = members()
        tar(Path("voc.tar"), self.voc)
        tar(Path("sbd.tgz"), self.sbd, "w:gz")
        Path("test.tar").touch()
        self.dataset("data/dataset")
        for split in ("train", "val"):
            self.shard(split, f"data/proposals/{split}-000.parquet")
        about = {"classes": self.params["dataset"]["classes"], "canvas": [64, 96], "scale": 1.0,
                 "windows": {"context": 1.2, "square": True}}  # fmt: skip
        for seed, (name, kind) in enumerate({"stage1": "deconvnet", "deconvnet": "deconvnet", "fcn8s": "fcn"}.items()):
            net = make_net(kind, seed=seed)
            files.save(f"data/models/{name}.pt", net.spec, net.state_dict(), about)
            self.infer(name, f"data/scores/{name}")
        self.ensemble("data/scores/edeconvnet/val-000.parquet")
        for name in ("fcn8s", "deconvnet", "edeconvnet"):
            self.crf(name, f"data/labels/{name}_crf/val-000.parquet")
        self.crops("stage1", "reports", "data/crops/stage1.parquet")
        self.crops("stage2", "reports", "data/crops/stage2.parquet")
        self.evaluate("reports", "data/evaluation/images.parquet")
        curves = pd.DataFrame({"step": [2, 4], "lr": [0.1, 0.01], "loss": [2.0, 1.0], "held_out_loss": [2.0, 1.5],
                               "held_out_accuracy": 0.5, "held_out_mean_iou": [0.1, 0.25]})  # fmt: skip
        for name in ("pretrain", "train_stage1", "train_stage2", "train_fcn"):
            curves.to_csv(f"reports/{name}.csv", index=False)
        self.recall("reports")
        Path("pictures").mkdir()
        Image.fromarray(draw(3)[0]).save("pictures/a.png")
        Image.fromarray(draw(4)[0]).save("pictures/b.jpg")
        self.report()  # undamaged, all of it is accepted
        self.predict("pictures")
        shutil.rmtree("out")

    def listing(self) -> set[str]:
        return {str(path.relative_to(self.base)) for path in self.base.rglob("*")}

    def dataset(self, out):
        dataset.main(["--input", "voc.tar", "--sbd", "sbd.tgz", "--test", "test.tar", "--out", out])

    def shard(self, split, out):
        proposals.main(
            ["shard", "--dataset", f"data/dataset/{split}-000.parquet", "--edge-model", "none", "--out", out]
        )

    def recall(self, reports):
        proposals.main(["recall", "--dataset", "data/dataset", "--proposals", "data/proposals",
                        "--metrics", f"{reports}/proposals.json", "--plot", f"{reports}/proposals.csv"])  # fmt: skip

    def crops(self, stage, reports, out):
        more = ["--proposals", "data/proposals"] if stage == "stage2" else []
        crops.main([stage, "--dataset", "data/dataset", "--out", out, "--balance", f"{reports}/crops_{stage}.csv",
                    "--render", f"{reports}/crops_{stage}.png", *more])  # fmt: skip

    def infer(self, name, out, model=None):
        infer.main(["--model", model or f"data/models/{name}.pt", "--dataset", "data/dataset", "--proposals",
                    "data/proposals", "--out", out, "--shards", "val-000", "--threads", "1", "--growth"])  # fmt: skip

    def ensemble(self, out):
        ensemble.main(["--dataset", "data/dataset/val-000.parquet",
                       "--members", "data/scores/deconvnet/val-000.parquet",
                       "data/scores/fcn8s/val-000.parquet", "--out", out])  # fmt: skip

    def crf(self, name, out):
        crf.main(["--dataset", "data/dataset/val-000.parquet", "--scores", f"data/scores/{name}/val-000.parquet",
                  "--out", out, "--processes", "1"])  # fmt: skip

    def evaluate(self, reports, images):
        evaluate.main(["--dataset", "data/dataset", "--scores", "data/scores", "--labels", "data/labels", "--reports",
                       reports, "--images", images])  # fmt: skip

    def report(self):
        words = ("--dataset data/dataset --proposals data/proposals --scores data/scores --labels data/labels --model "
                 "data/models/deconvnet.pt --images data/evaluation/images.parquet --reports reports --out "
                 "out/index.html")  # fmt: skip
        report.main(words.split())

    def predict(self, *pictures):
        predict.main([*pictures, "--model", "data/models/deconvnet.pt", "--out", "out/predicted"])


# The families: each makes one case from a source of chance.


def archives(world: World, chance: random.Random) -> Case:
    """Archives of images: their bytes, their members, what lies in their place."""
    run = lambda: world.dataset("out/dataset")  # noqa: E731
    name = chance.choice(["voc.tar", "sbd.tgz"])
    path = Path(name)
    what = chance.choice(["bytes", "bytes", "member", "member", "member", "member", "place", "name"])
    if what == "bytes":
        damage = chance.choice(list(BYTES))
        path.write_bytes(BYTES[damage](path.read_bytes(), chance))
        return Case(f"archives/{damage}", run)
    if what == "place":
        damage = chance.choice(PLACES)
        place(path, damage)
        return Case(f"archives/{damage}", run)
    found = dict(world.voc if name == "voc.tar" else world.sbd)
    _, classes, instances = draw(0 if name == "voc.tar" else 3)
    if what == "name":
        odd = chance.choice(
            ["/etc/passwd", "../../x", "a/../../x", "x" * 100, "JPEGImages/\x1b[31m.jpg", "a\nb", "\udcff"]
        )
        found[odd] = b"x"
        damage = "stray names"
    elif name == "voc.tar":
        labels, objects = (f"{VOC}/Segmentation{kind}/v1.png" for kind in ("Class", "Object"))
        split, image = f"{VOC}/ImageSets/Segmentation/train.txt", f"{VOC}/JPEGImages/v1.jpg"
        four = saved(Image.fromarray(instances * 17).convert("L"), "PNG", bits=4)
        changes = {
            "GIF": (labels, saved(classes, "GIF")), "TIFF": (labels, saved(classes, "TIFF")),
            "RGB": (labels, saved(np.stack([classes] * 3, 2), "PNG")),
            "16 bits": (labels, saved(classes.astype(np.uint16), "PNG")),
            "4 bits": (objects, grey4(instances)), "no objects": (objects, png(0 * instances)),
            "giant": (chance.choice([labels, objects, image]), giant()),
            "giant wide": (labels, giant(2**31 - 1, 1)), "no pixel": (labels, giant(0, 0)),
            "UTF-16": (split, "v1\nv2\n".encode("utf-16")), "Latin-1": (split, "v1\nü\n".encode("latin-1")),
            "path": (split, b"../v1\nv2\n"), "long id": (split, b"v" * 100_000 + b"\n"),
            "CRLF": (split, b"v1\r\nv2\r\n"),
            "controls": (split, b"v1\nv\x1b[31m\n"), "repeated": (split, b"v1\nv1\n"), "empty": (split, b""),
            "high class": (labels, png(np.where(classes == 1, 200, classes).astype(np.uint8))),
            "EPS": (image, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n"), "text": (labels, b"text"),
            "lost": (chance.choice([labels, objects, image, split]), None), "grey": (objects, four[:30]),
            "far objects": (objects, png(np.where(instances, 14, 0).astype(np.uint8))),
        }  # fmt: skip
        damage = chance.choice(list(changes))
        key, data = changes[damage]
        found[key] = data
    else:
        cls, inst = f"{SBD}/cls/s1.mat", f"{SBD}/inst/s1.mat"
        values = classes.astype(float)
        bad = {"nan": np.nan, "negative": -1.0, "fraction": 1.5, "beyond": 2.0**32 + 1, "300": 300.0, "inf": np.inf}
        changes = {
            name: (cls, mat(GTcls={"Segmentation": np.where(values == 1, value, values)}))
            for name, value in bad.items()
        } | {
            "wide": (cls, mat(GTcls={"Segmentation": (classes.astype(np.int64) + (classes > 0) * 2**32)})),
            "text": (cls, mat(GTcls={"Segmentation": "text"})), "no struct": (cls, mat(x=1)),
            "3 axes": (cls, mat(GTcls={"Segmentation": np.stack([classes] * 2)})),
            "complex": (cls, mat(GTcls={"Segmentation": classes * 1j})),
            "bomb": (cls, bomb()), "cut": (cls, world.sbd[cls][: chance.randrange(200)]),
            "flip mat": (inst, flipped(world.sbd[inst], chance)), "lost": (chance.choice([cls, inst]), None),
            "categories": (inst, mat(GTinst={"Segmentation": instances, "Categories": np.array([[chance.choice(
                [np.nan, -1, 1.5, 2.0**32 + 1, 2.0])], [2.0]])})),
            "few categories": (inst, mat(GTinst={"Segmentation": instances, "Categories": np.zeros((0, 0))})),
        }  # fmt: skip
        damage = chance.choice(list(changes))
        key, data = changes[damage]
        found[key] = data
    found = {key: data for key, data in found.items() if data is not None}
    if chance.random() < 0.05:
        damage = "repeat a member"
        found = (dict(world.voc) if name == "voc.tar" else dict(world.sbd)) | {"./x": b""}
    tar(path, found, "w" if name == "voc.tar" else "w:gz")
    return Case(f"archives/{damage}", run)


VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 10**9, 10**30, 10**400, -0.0, 0.5, 1.0, 1e-300, 1e300, float("inf"),
    float("nan"),
    "", "x", "a\nb", "x" * 100_000, "010", "1:30", "../../x", "/etc/passwd", "\x1b[31m", "$x$", [], [1], [5, 5], [3, 1],
    [[1]], [None], ["val", "val"], {}, {"a": 1}, {1: 2, "x": 3}, "plateau", "cosine", [-1], [0], [1] * 1000,
]  # fmt: skip
TEXTS = [
    b"\xff\xfe", "root: ü".encode("latin-1"), "root: .".encode("utf-16"), b"[" * 3000, b"{" * 3000, b"a: &a [*a]",
    b"a: !!int x", b"a: 2015-13-45", b"a: " + b"1" * 5000, b"\x00", b"a: !!python/object:os.x {}", b"- 1", b"",
    b"a: b: c",
    b"? [1]\n: 2", b"a: &x {b: 1}\nc: {<<: *x}", b"%YAML 9.9\n---\na: 1", b"--- a\n--- b", b"a: 1\na: 2",
    b"x" * 300_000,
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]",
]  # fmt: skip


def leaves(values: dict, path: tuple = ()) -> list[tuple]:
    found = []
    for name, value in values.items():
        found += [(*path, name)] + (leaves(value, (*path, name)) if isinstance(value, dict) else [])
    return found


def changed(values: dict, path: tuple, value) -> dict:
    values = copy.deepcopy(values)
    section = values
    for name in path[:-1]:
        section = section[name]
    if value is ...:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    return values


# Keys whose default is empty, which then counts (deconvnet/fields.py).
MAY_BE_MISSING = [("dataset", "counts"), ("dataset", "input"), ("crops", "max_copies"), ("train_fcn", "batch_norm_eps"),
                  ("folders",), ("infer",)]  # fmt: skip


def params(world: World, chance: random.Random) -> Case:
    """The parameter file: its bytes, its keys and its values; what is accepted goes through two stages."""
    path = Path("params.yaml")

    def run():
        parameters.load()
        world.shard("val", "out/val-000.parquet")
        world.crops("stage1", "out", "out/stage1.parquet")

    what = chance.choice(["value"] * 8 + ["bytes", "text", "place", "key", "json"])
    if what == "bytes":
        damage = chance.choice(list(BYTES))
        path.write_bytes(BYTES[damage](path.read_bytes(), chance))
    elif what == "text":
        damage = "text"
        path.write_bytes(chance.choice(TEXTS))
    elif what == "place":
        damage = chance.choice(PLACES)
        place(path, damage)
    elif what == "json":
        damage = "json"
        text = json.dumps(changed(world.params, chance.choice(leaves(world.params)), chance.choice(VALUES)))
        Path("out").mkdir(exist_ok=True)
        Path("out/p.json").write_text(chance.choice([text, text[:-1], text.replace(":", ": 1, ", 1), "[" * 90_000]))
        return Case("parameters/another value", lambda: parameters.load("out/p.json"))
    elif what == "key":
        damage = "key"
        where = chance.choice(leaves(world.params))
        if chance.random() < 0.5:
            path.write_text(yaml.safe_dump(changed(world.params, where, ...)))
            if where[:2] in MAY_BE_MISSING:
                damage = "another value"
        else:
            odd = chance.choice(["typo", 7, None, "x" * 9999, "\x1b"])
            path.write_text(yaml.safe_dump(changed(world.params, (*where[:-1], odd), 1)))
    else:
        damage = "another value"
        new = changed(world.params, chance.choice(leaves(world.params)), chance.choice(VALUES))
        path.write_text(yaml.safe_dump(new))
    return Case(f"parameters/{damage}", run)


def consumers(world: World) -> dict:
    """Tables by path, each with the stages that read it."""
    val = "val-000.parquet"
    return {
        f"data/dataset/{val}": [lambda: world.shard("val", f"out/{val}"), lambda: world.crf("fcn8s", f"out/{val}"),
                                lambda: world.infer("fcn8s", "out"), lambda: world.evaluate("out", "out/i.parquet")],
        "data/dataset/train-000.parquet": [lambda: world.crops("stage1", "out", "out/s.parquet"),
                                           lambda: world.crops("stage2", "out", "out/s.parquet")],
        f"data/proposals/{val}": [lambda: world.infer("deconvnet", "out")],
        "data/proposals/train-000.parquet": [lambda: world.crops("stage2", "out", "out/s.parquet")],
        f"data/scores/fcn8s/{val}": [lambda: world.ensemble(f"out/{val}"), lambda: world.crf("fcn8s", f"out/{val}"),
                                     lambda: world.evaluate("out", "out/i.parquet")],
        f"data/labels/fcn8s_crf/{val}": [lambda: world.evaluate("out", "out/i.parquet")],
    }  # fmt: skip


def table(world: World, chance: random.Random) -> Case:
    """Tables: their bytes, their columns, their values."""
    found = consumers(world)
    path = Path(chance.choice(list(found)))
    run = chance.choice(found[str(path)])
    original, data = tables.read(path), path.read_bytes()
    what = chance.choice(["bytes", "bytes", "values", "values", "values", "values", "columns", "place"])
    if what == "bytes":
        damage = chance.choice(list(BYTES))
        path.write_bytes(BYTES[damage](data, chance))

        def same():
            with contextlib.suppress(InputError):  # in a column that this stage does not read
                check(tables.read(path).equals(original))

        return Case(f"tables/{damage}", run, same)
    if what == "place":
        damage = chance.choice(PLACES)
        place(path, damage)
        return Case(f"tables/{damage}", run)
    rows = original.to_pylist()
    name = chance.choice(original.column_names)
    if what == "columns":
        damage = chance.choice(["drop a column", "more columns", "another type", "empty", "wider type"])
        new = original
        if damage == "drop a column":
            new = original.drop_columns([name])
            damage = f"drop {name}"
        elif damage == "more columns":
            new = original.append_column("more", pa.array([1] * len(original)))
        elif damage == "another type":
            place_ = original.column_names.index(name)
            new = original.set_column(place_, name, pa.array([chance.choice(["x", b"x", True])] * len(original)))
            damage = f"another type of {name}"
        elif damage == "empty":
            new = original[:0]
        else:
            wide = [pa.field(f.name, pa.int64() if pa.types.is_int32(f.type) else f.type) for f in original.schema]
            new = original.cast(pa.schema(wide))
        tables.write(path, new)
        return Case(f"tables/{damage}", run)
    row = chance.randrange(len(rows))
    kind = original.schema.field(name).type
    if pa.types.is_string(kind):
        values = [None, "", "../x", "a/b", "x" * 300, "\x1b[31m", "a\nb", rows[chance.randrange(len(rows))][name], "z"]
    elif pa.types.is_binary(kind):
        values = [None, b"", b"x", giant(), giant(kind=2), giant(4000, 4000), flipped(rows[row][name] or b"x", chance),
                  png(np.full((60, 80), 200, np.uint8)), png(np.zeros((9, 9), np.uint8)), jpeg(draw(9)[0])]  # fmt: skip
    elif pa.types.is_list(kind):
        values = [None, [], [None], rows[row][name] * 2 if rows[row][name] else []]
        if pa.types.is_integer(kind.value_type):
            values += [[200, 200], [-1, 1], [2**31 - 1] * 2]
        elif pa.types.is_list(kind.value_type):
            values += [
                [[1]],
                [[-5, 0, 9, 9]] * 2,
                [[0, 0, 10**6, 10**6]] * 2,
                [None, None],
                [[0, 0, 60_000, 60_000]] * 2,
            ]
    else:
        values = [None, 0, -1, 200, 2**31 - 1, 65_000]
        if pa.types.is_floating(kind):
            values = [value if value is None else float(value) for value in values]
            values += [float("nan"), float("inf"), -float("inf"), 1e30, -5.0]
    value = chance.choice(values)
    rows[row][name] = value
    tables.write(path, pa.Table.from_pylist(rows, original.schema))
    return Case(f"tables/{name}", run)


def check(holds: bool) -> None:
    if not holds:
        raise AssertionError("accepted, and not the same")


def model(world: World, chance: random.Random) -> Case:
    """Model files: their bytes, spec, weights and what stands beside them."""
    name = chance.choice(["deconvnet", "fcn8s"])
    path = Path(f"data/models/{name}.pt")
    net = files.read(path)
    run = chance.choice([lambda: world.infer(name, "out"), lambda: files.load(path)])
    what = chance.choice(["bytes", "bytes", "spec", "weights", "weights", "about", "place", "file"])
    before = {key: tensor.clone() for key, tensor in net["state"].items()}

    def same():
        now = files.read(path)["state"]
        check(now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in now))

    if what == "bytes":
        damage = chance.choice(list(BYTES))
        path.write_bytes(BYTES[damage](path.read_bytes(), chance))
        return Case(f"models/{damage}", run, same)
    if what == "place":
        damage = chance.choice(PLACES)
        place(path, damage)
        return Case(f"models/{damage}", run)
    if what == "file":
        damage = chance.choice(["swapped", "compressed", "code", "a list", "another zip", "lacks"])
        if damage == "swapped":
            shutil.copy("data/models/fcn8s.pt" if name == "deconvnet" else "data/models/deconvnet.pt", path)
            return Case("models/other weights", run)
        if damage == "compressed":
            parts = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
                for part in parts.namelist():
                    new.writestr(part, parts.read(part))
        elif damage == "code":
            path.write_bytes(pickle.dumps(Harm()))
        elif damage == "another zip":
            with zipfile.ZipFile(path, "w") as new:
                new.writestr("x", "y")
        else:
            torch.save([1] if damage == "a list" else {"spec": net["spec"], "about": {}}, path)
        return Case(f"models/{damage}", run)
    damage = what
    if what == "weights":
        key = chance.choice(list(net["state"]))
        tensor = net["state"][key]
        damage = chance.choice(
            ["nan", "inf", "shape", "lost", "more", "no tensor", "other weights", "complex", "sparse"]
        )
        if damage in ("nan", "inf"):
            if not tensor.is_floating_point():
                damage = "other weights"
            else:
                tensor.view(-1)[chance.randrange(tensor.numel())] = float(damage)
        elif damage == "other weights":
            if tensor.is_floating_point():
                net["state"][key] = tensor + 0.5
        elif damage == "lost":
            del net["state"][key]
        else:
            new = {"shape": torch.zeros(3, 2), "no tensor": "x", "complex": tensor * 1j, "more": torch.zeros(1),
                   "sparse": torch.zeros(tensor.shape).to_sparse()}[damage]  # fmt: skip
            net["state"]["more" if damage == "more" else key] = new
    else:
        where = chance.choice(leaves(net[what]))
        net[what] = changed(net[what], where, chance.choice([*VALUES[:40], ...]))
    torch.save(net, path)
    return Case(f"models/{damage}", run)


class Harm:
    def __reduce__(self):
        return os.system, ("touch outside; touch ../outside",)


def reports(world: World, chance: random.Random) -> Case:
    """The reports that the page is made of."""
    path = Path("reports") / chance.choice(
        sorted(
            {path.name for suffix in ("csv", "json") for path in Path("reports").glob(f"*.{suffix}")}
            - {"mean_iou.json", "proposals.json"}
        )  # for DVC's tables alone
    )

    def run():
        report.read_reports(Path("reports"), world.params["dataset"]["classes"])
        if whole:  # the page takes seconds
            world.report()

    whole = chance.random() < 0.1
    what = chance.choice(["flip", "cut", "noise", "place", "value", "value", "value"])
    if what == "place":
        what = chance.choice(PLACES)
        place(path, what)
    elif what == "value":
        values = re.findall(r"[\w.+-]+", path.read_text())
        new = chance.choice(["nan", "inf", "-1", "1e300", "x", "", "<b>", "null", "[]", "7", "0.5", '"'])
        path.write_text(path.read_text().replace(chance.choice(values), new, chance.choice([1, 99])))
    else:
        path.write_bytes(BYTES[what](path.read_bytes(), chance))
    return Case(f"reports/{what}", run)


def pictures(world: World, chance: random.Random) -> Case:
    """Pictures, and what only has the name of one."""
    Path("out").mkdir(exist_ok=True)
    image = draw(5)[0]
    tall = Image.fromarray(image)
    odd = {
        "grey.png": saved(image[:, :, 0], "PNG"), "deep.png": saved(image[:, :, 0].astype(np.uint16) * 257, "PNG"),
        "one.png": saved(image[:1, :1], "PNG"), "line.png": saved(image[:1], "PNG"),
        "cmyk.jpg": saved(tall.convert("CMYK"), "JPEG"),
        "moves.gif": saved(tall, "GIF", save_all=True, append_images=[tall]),
        "clear.png": saved(tall.convert("RGBA"), "PNG"), "bits.png": saved(tall.convert("1"), "PNG"),
        "web.webp": saved(tall, "WEBP"), "t.tif": saved(tall, "TIFF"), "float.tif": saved(tall.convert("F"), "TIFF"),
        "\x1b[31m.png": saved(tall, "PNG"), "a b$c.png": saved(tall, "PNG"), "ü" * 100 + ".png": saved(tall, "PNG"),
        os.fsdecode(b"\xff.png"): saved(tall, "PNG"),
    }  # fmt: skip
    bad = {
        "giant.png": giant(kind=2), "text.png": b"text", "empty.png": b"",
        "e.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "x" * 245 + ".png": saved(tall, "PNG"), "none.png": giant(0, 0, 2), "wide.png": giant(2**31 - 1, 1, 2),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }  # fmt: skip
    what = chance.choice(["odd", "odd", "bad", "flip", "cut", "place"])
    if what in ("odd", "bad"):
        name, data = chance.choice(list((odd if what == "odd" else bad).items()))
        path = Path("out") / name
        path.write_bytes(data)
    elif what == "place":
        path = Path("out/a.png")
        path.touch()
        what = chance.choice(PLACES)
        place(path, what)
    else:
        path = Path("out/b.jpg")
        path.write_bytes(BYTES[what](Path("pictures/b.jpg").read_bytes(), chance))
    return Case(f"pictures/{what}", lambda: world.predict(chance.choice([str(path), "out"])))


def trainer_on(folder: Path) -> loop.Trainer:
    """A trainer of four steps, of an untrained net, without data."""
    run = settings.Run(steps=4, batch=2, micro_batch=2, batch_norm_crops=None, drop_at=(), validate_every=4)
    made = types.SimpleNamespace(train_rows=range(2), validation_rows=range(0))
    return loop.Trainer(make_net(), made, run, Worker(torch.device("cpu")), {}, folder)


def checkpoint(world: World, chance: random.Random) -> Case:
    """The checkpoints of a training; what is resumed is one of the two that were written."""
    trainer = trainer_on(Path("out/checkpoints"))
    known = []
    for step in (1, 2):
        for parameter in trainer.net.parameters():
            parameter.data += 1
        trainer.step = step
        trainer.best, trainer.best_file = (
            {"mean_iou": 0.5},
            trainer.checkpoints.save_best(step, trainer.net.state_dict()),
        )
        trainer._save_checkpoint()
        trainer.checkpoints.wait()
        known.append([tensor.clone() for tensor in trainer.net.state_dict().values()])
    path = chance.choice(sorted(Path("out/checkpoints").iterdir()))
    state = torch.load(path, weights_only=True)
    what = chance.choice(["bytes", "bytes", "bytes", "place", "content", "content", "swapped"])
    if what == "bytes":
        what = chance.choice(list(BYTES))
        path.write_bytes(BYTES[what](path.read_bytes(), chance))
    elif what == "place":
        what = chance.choice(PLACES)
        place(path, what)
    elif what == "swapped":
        shutil.copy("data/models/fcn8s.pt", path)
    else:
        where = chance.choice(leaves(state))
        old = state[where[0]]
        values = [..., None, 7, "x", [], {}, torch.zeros(2), torch.tensor(float("nan"))]
        if isinstance(old, torch.Tensor):
            values += [torch.full_like(old, torch.nan)] if old.is_floating_point() else []
        torch.save(changed(state, where, chance.choice(values)), path)
    resumed = trainer_on(Path("out/checkpoints"))

    def same():
        now = list(resumed.net.state_dict().values())
        fresh = list(make_net().state_dict().values())
        found = (all(map(torch.equal, now, each)) for each in (*known, fresh))
        check(any(found) or what == "content")

    return Case(f"checkpoints/{what}", resumed._resume, same)


BODY = bytes(range(256)) * 400


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers by the server's source of chance: now and then as it should."""

    def do_GET(self):
        chance, write = self.server.chance, self.wfile.write
        with contextlib.suppress(OSError):
            if chance.random() < 0.1:
                return write(chance.choice([b"", b"junk\r\n\r\n", b"HTTP/9.9 abc\r\n", b"HTTP/1.1 200 OK\r\nx" * 200]))
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(asked[1]) if asked else 0
            good = 206 if asked else 200
            self.send_response(chance.choice([good] * 6 + [200, 206, 204, 301, 302, 403, 404, 416, 429, 500, 503]))
            length = len(BODY) - start
            for name, values in {
                "Content-Length": [length] * 5 + [0, 7, length * 9, -1, "x", "1" * 500, None],
                "Content-Range": [f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"] * 4 + ["bytes */0", "x", "9-1/0", None],
                "Location": ["file:///etc/passwd", "/loop", "http://[", "ftp://x/y", "x" * 9999],
                "Content-Encoding": [None] * 5 + ["gzip", "deflate", "x"],
                "Retry-After": [None, "x", "-1", "1e999", "9" * 99],
                "Transfer-Encoding": [None] * 9 + ["chunked"], "ETag": [None, '"a"', "\x1b[31m"],
            }.items():  # fmt: skip
                if (value := chance.choice(values)) is not None:
                    self.send_header(name, str(value))
            self.end_headers()
            body = BODY[start:]
            write(
                chance.choice([body] * 4 + [body[: chance.randrange(len(body) + 1)], body * 3, chance.randbytes(999)])
            )

    def log_message(self, *_):
        pass


def server(world: World, chance: random.Random) -> Case:
    """A host that answers wrongly; what arrives is the file, or nothing has its name."""
    file = Path("out/file")
    digest = hashlib.sha256(BODY).hexdigest()

    def run():
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as host:
            host.chance = random.Random(chance.random())
            thread = threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            patience = download.Patience(attempts=2, timeout=(1.0, 1.0), sleep=lambda _: None)
            address = f"http://127.0.0.1:{host.server_address[1]}/file"
            try:
                download.fetch(file, [address], download.Expected(len(BODY), sha256=digest), patience)
            finally:
                host.shutdown()

    return Case("server/odd", run, lambda: check(file.read_bytes() == BODY))


FAMILIES = {"archives": archives, "parameters": params, "tables": table, "models": model, "reports": reports,
            "pictures": pictures, "checkpoints": checkpoint, "server": server}  # fmt: skip


def one(world: World, family: str, seed: str) -> tuple[str, str]:
    """Run one case: "clean", "accepted" or a fault, and what is to be said of it."""
    chance = random.Random(seed)
    kept = {path: path.read_bytes() for path in world.folder.rglob("*") if path.is_file()}
    before = peak_memory()
    printed = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            case = FAMILIES[family](world, chance)
        except Exception:
            restore(world, kept)
            return "driver", traceback.format_exc()
        inputs = {path for path in world.folder.rglob("*")}
        clock(SECONDS, WAITING)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                call(lambda _: case.run(), [])
            clock(0, 0)
            outcome = "accepted", case.kind
            if case.kind not in JUSTIFIED and not acceptable(case.kind):
                outcome = "unjustified", case.kind
            elif case.same:
                case.same()
        except InputError as error:
            said = str(error)
            outcome = "clean", f"{case.kind}: {said}"
            if len(said) > 3000 or not said.isprintable():
                outcome = "unclear", repr(said[:3000])
            elif left := [path for path in world.folder.rglob("*") if path not in inputs and path.is_file()
                          and "predicted" not in path.parts and path.suffix != ".part"]:  # fmt: skip
                outcome = "half-written", f"{case.kind}: {left}"
        except Hang:
            outcome = "hang", case.kind
        except BaseException:
            outcome = "traceback", f"{case.kind}\n{traceback.format_exc()}"
        finally:
            clock(0, 0)
    peak = peak_memory(anew=False)
    if MEMORY < peak > before:
        outcome = "memory", f"{case.kind}: {peak / 1e9:.1f} GB, {outcome}"
    if left := [path for path in world.folder.rglob(".*.tmp")]:
        outcome = "left over", f"{case.kind}: {left}"
    if outside := {name for name in world.listing() if not name.startswith("inner/experiment")} - {"inner"}:
        outcome = "outside", f"{case.kind}: {outside}"
    restore(world, kept)
    return outcome


def peak_memory(anew: bool = True) -> int:
    """Most memory that this process held, in bytes; it begins anew, but not on every kernel."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def acceptable(kind: str) -> bool:
    """Values of tables and lost columns: which of them a stage reads, and which it refuses, is drawn."""
    if kind.startswith("checkpoints/"):
        return True  # each falls back to the other, or the training starts afresh: `same` looks at the weights
    return kind.startswith("tables/") and kind.split("/")[1] not in ("noise", "cut", *PLACES)


def restore(world: World, kept: dict[Path, bytes]) -> None:
    shutil.rmtree("out", ignore_errors=True)
    for path in world.folder.rglob("*"):
        if path not in kept and (path.is_symlink() or not path.is_dir()):
            path.unlink()
    for path, data in kept.items():
        if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.write_bytes(data)


def clock(seconds: float, waiting: float) -> None:
    """Raise Hang after so many seconds of the processor, or of the clock; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, waiting)


def stop(*_) -> None:
    raise Hang


def fuzz(seed: int, cases: int, families: list[str], say=None) -> tuple[Counter, list[str]]:
    """Run cases; how many ended how, by family, and the faults."""
    here, faults, counted = os.getcwd(), [], Counter()
    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                world = World(Path(folder))
            for number in range(cases):
                family = families[number % len(families)]
                begin = time.monotonic()
                outcome, said = one(world, family, f"{seed} {family} {number}")
                counted[family, outcome] += 1
                if outcome not in ("clean", "accepted"):
                    faults.append(f"{outcome}: seed {seed} case {number}: {said}")
                if say:
                    say(f"{number} {time.monotonic() - begin:.2f} s {outcome}: {' '.join(said.split())[:300]}")
            os.chdir(here)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.chdir(here)
    return counted, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--family", choices=FAMILIES, action="append", help="all by default")
    parser.add_argument("--every", action="store_true", help="print every case")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print_case = (lambda line: print(line, flush=True)) if options.every else None
    counted, faults = fuzz(options.seed, options.cases, options.family or list(FAMILIES), print_case)
    for fault in faults:
        print(fault, "\n")
    for family in options.family or FAMILIES:
        print(family, {outcome: count for (name, outcome), count in sorted(counted.items()) if name == family})
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
