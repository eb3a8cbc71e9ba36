"""The stage infer: its tables, its fingerprints, what it refuses."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from deconvnet import scores, tables
from deconvnet.errors import InputError
from deconvnet.images import decode_mask
from deconvnet.inference import models
from deconvnet.nets import files
from experiment import cli, times
from experiment.params import load
from stages import infer
from tests.conftest import jpeg
from tests.deconvnet.test_inference import make_net, pictures


def inside(windows, image):
    """The parts of windows int32 (n, 4) that lie in the image, at least 1 px: proposals never go beyond it."""
    ends = np.minimum(windows[:, :2] + windows[:, 2:], image.shape[1::-1])
    corner = np.maximum(windows[:, :2], 0)
    return np.concatenate([corner, np.maximum(ends - corner, 1)], 1)


@pytest.fixture
def shard(experiment):
    """An experiment with one shard of three images, its proposals, and both models."""
    rows = [(f"p{index}", image, inside(windows, image)) for index, (image, windows) in enumerate(pictures(3))]
    table = pa.table({"image_id": [name for name, *_ in rows], "image": [jpeg(image) for _, image, _ in rows]})
    tables.write("data/dataset/val-000.parquet", table)
    boxes = [
        {"image_id": name, "rank": rank, "x": x, "y": y, "width": w, "height": h, "objectness": 1 / rank}
        for name, _, windows in rows
        for rank, (x, y, w, h) in enumerate(windows.tolist(), 1)
    ]
    tables.write("data/proposals/val-000.parquet", pa.Table.from_pylist(boxes))
    for name, kind in (("deconvnet", "deconvnet"), ("fcn8s", "fcn")):
        net = make_net(kind)
        files.save(f"data/models/{name}.pt", net.spec, net.state_dict(), {"classes": ["background", "one", "two"]})
    return experiment


def arguments(system, shards):
    return ["--model", f"data/models/{system}.pt", "--dataset", "data/dataset", "--proposals", "data/proposals",
            "--out", f"data/scores/{system}", "--shards", *shards]  # fmt: skip


def call(system="deconvnet", *more):
    infer.main([*arguments(system, ["val-000"]), *more])
    return tables.read(f"data/scores/{system}/val-000.parquet").to_pylist()


def split(*parts):
    """Deal the images of the shard out to shards val-000, val-001, ..."""
    for name in ("dataset", "proposals"):
        table = tables.read(f"data/{name}/val-000.parquet")
        for number, ids in enumerate(parts):
            part = table.filter(pc.is_in(table["image_id"], pa.array(ids, pa.string())))
            tables.write(f"data/{name}/val-{number:03}.parquet", part)
    return [f"val-{number:03}" for number in range(len(parts))]


def test_the_stage_writes_scores_that_labels_and_growth_agree_with(shard, capsys):
    rows = call("deconvnet", "--growth")
    assert [row["image_id"] for row in rows] == ["p0", "p1", "p2"]
    assert [row["windows"] for row in rows] == [9, 9, 0]
    out = capsys.readouterr().out
    assert out == "deconvnet val-000: 3 images scored on cpu, 1 of them without a proposal and so all background\n"
    assert not decode_mask(rows[2]["labels"]).any()
    growth = yaml.safe_load(open("params.yaml"))["infer"]["growth"]
    for row in rows:
        maps = scores.decode(row, 3)
        assert maps.shape == (3, row["height"], row["width"])
        np.testing.assert_array_equal(maps.argmax(0), decode_mask(row["labels"]))
        assert len(row["growth"]) == len(growth)
        assert row["growth"][growth.index(50)] == row["labels"]  # infer.deconvnet.proposals is 50
    assert all(row["windows"] is None and not row["growth"] for row in call("fcn8s"))


def changed(params, **values):
    return dataclasses.replace(params, infer=dataclasses.replace(params.infer, **values))


def test_same_inputs_same_bytes_and_a_fingerprint_of_what_matters(shard):
    path = shard / "data/scores/deconvnet/val-000.parquet"
    call()
    before = path.read_bytes()
    path.unlink()
    call()
    assert path.read_bytes() == before
    params = load()
    paths = [Path(f"data/{name}") for name in ("dataset/val-000.parquet", "proposals/val-000.parquet",
                                                     "models/deconvnet.pt")]  # fmt: skip
    mark = infer.fingerprint(*paths, False, params)
    assert tables.footer(path)["fingerprint"] == mark
    bigger = changed(params, fcn_batch=99, deconvnet=dataclasses.replace(params.infer.deconvnet, batch=99))
    assert infer.fingerprint(*paths, False, bigger) == mark
    fewer = changed(params, deconvnet=dataclasses.replace(params.infer.deconvnet, proposals=10))
    assert infer.fingerprint(*paths, False, fewer) != mark
    wider = dataclasses.replace(params, crops=dataclasses.replace(params.crops, context=1.5))
    assert infer.fingerprint(*paths, False, wider) != mark
    grown = changed(params, growth=(1, 2))
    assert infer.fingerprint(*paths, False, grown) == mark != infer.fingerprint(*paths, True, params)
    assert infer.fingerprint(*paths, True, grown) != infer.fingerprint(*paths, True, params)

    whole = paths[0], None, paths[2], False  # FCN-8s sees no proposals
    assert infer.fingerprint(*whole, fewer) == infer.fingerprint(*whole, wider) == infer.fingerprint(*whole, params)
    canvas = dataclasses.replace(params, train_fcn=dataclasses.replace(params.train_fcn, canvas=(9, 9)))
    assert infer.fingerprint(*whole, canvas) != infer.fingerprint(*whole, params)
    assert infer.fingerprint(*paths, False, canvas) == mark


def test_one_shard_or_two_change_nothing(shard):
    params = yaml.safe_load(open("params.yaml"))
    params["infer"]["precision"] = "float32"
    (shard / "params.yaml").write_text(yaml.safe_dump(params))
    whole = call()
    full = {name: tables.read(f"data/{name}/val-000.parquet") for name in ("dataset", "proposals")}
    parts = []
    for ids in (["p0"], ["p1", "p2"]):
        for name, table in full.items():
            tables.write(f"data/{name}/val-000.parquet", table.filter(pc.is_in(table["image_id"], pa.array(ids))))
        parts += call()
    for one, two in zip(whole, parts, strict=True):
        assert one["labels"] == two["labels"]
        np.testing.assert_allclose(scores.decode(one, 3), scores.decode(two, 3), atol=1e-2)  # a step of the storage


@pytest.mark.parametrize("system", ["deconvnet", "fcn8s"])
def test_shards_of_one_process_are_those_of_processes_of_their_own(shard, system, monkeypatch, capsys):
    names = split(["p0"], [], ["p1", "p2"])
    folder = Path("data/scores", system)
    loaded, whole_file = [], models.load_net
    monkeypatch.setattr(models, "load_net", lambda *them: loaded.append(them) or whole_file(*them))
    infer.main([*arguments(system, names), "--threads", "2"])
    assert len(loaded) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{system} {name}" for name in names
    ]
    together = [(folder / f"{name}.parquet").read_bytes() for name in names]
    for name, data in zip(names, together, strict=True):
        (folder / f"{name}.parquet").unlink()
        infer.main([*arguments(system, [name]), "--threads", "1"])
        assert (folder / f"{name}.parquet").read_bytes() == data
    rows = [tables.read(folder / f"{name}.parquet")["image_id"].to_pylist() for name in names]
    assert rows == [["p0"], [], ["p1", "p2"]]


def test_a_killed_process_leaves_the_shards_before(shard):
    names = split(["p0"], ["p1"], ["p2"])
    killed = (
        "import os, signal; from stages import infer; write = infer.write; infer.write = lambda one, *more: "
        "write(one, *more) if one.out.stem != 'val-001' else os.kill(os.getpid(), signal.SIGKILL); "
        f"infer.main({arguments('deconvnet', names)})"
    )
    done = subprocess.run([sys.executable, "-c", killed], check=False)
    assert done.returncode == -signal.SIGKILL
    folder = Path("data/scores/deconvnet")
    assert [path.name for path in folder.iterdir()] == ["val-000.parquet"]
    assert tables.read(folder / "val-000.parquet")["image_id"].to_pylist() == ["p0"]


def test_a_shard_that_fails_leaves_those_before(shard):
    names = split(["p0"], ["p1", "p2"])
    table = tables.read("data/dataset/val-001.parquet").to_pylist()
    table[0]["image"] = b"no picture"
    tables.write("data/dataset/val-001.parquet", pa.Table.from_pylist(table))
    with pytest.raises(InputError, match="data/dataset/val-001.parquet: p1: does not decode"):
        infer.main(arguments("deconvnet", names))
    assert [path.name for path in Path("data/scores/deconvnet").iterdir()] == ["val-000.parquet"]


def test_every_shard_is_a_record_of_time(shard, monkeypatch):
    monkeypatch.setattr(cli, "_ends", [])
    monkeypatch.setattr(sys, "argv", ["stages/infer.py", *arguments("deconvnet", split(["p0"], ["p1", "p2"]))])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli.os, "register_at_fork", lambda **_: None)
    monkeypatch.setattr(cli.os, "_exit", lambda _: None)
    cli.run(infer.main)
    records, _ = times.read(cli.TIMES)
    assert [(record["module"], record["arguments"][-1]) for record in records] == [
        ("infer", f"data/scores/deconvnet/val-00{number}.parquet") for number in range(2)
    ]


def test_a_model_of_other_classes_is_refused(shard):
    params = yaml.safe_load(open("params.yaml"))
    params["dataset"]["classes"].append("three")
    (shard / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(
        InputError,
        match="data/models/deconvnet.pt: scores 3 classes, not the 4 of dataset.classes in params.yaml; train",
    ):
        call()


def test_a_picture_that_does_not_decode_is_named(shard):
    table = tables.read("data/dataset/val-000.parquet").to_pylist()
    table[1]["image"] = table[1]["image"][:200]
    tables.write("data/dataset/val-000.parquet", pa.Table.from_pylist(table))
    with pytest.raises(InputError, match="val-000.parquet: p1: does not decode"):
        call()
    assert not (shard / "data/scores/deconvnet").exists() or not list((shard / "data/scores/deconvnet").iterdir())


def test_a_model_whose_scores_are_no_numbers_is_named(shard):
    saved = files.read("data/models/fcn8s.pt")
    saved["state"]["score_fc7.bias"][0] = float("nan")
    files.save("data/models/fcn8s.pt", saved["spec"], saved["state"], saved["about"])
    with pytest.raises(InputError, match="^data/models/fcn8s.pt: score_fc7.bias: .* not finite numbers; train"):
        call("fcn8s")
    assert not Path("data/scores/fcn8s/val-000.parquet").exists()
