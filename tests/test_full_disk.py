"""A disk that fills at every file of every stage in turn, and in the middle of each."""

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from deconvnet.errors import InputError
from experiment.cli import call
from stages import pretrain, reestimate, train, train_fcn
from tests import world as trained
from tests.fuzz import World
from tests.stages.conftest import folder, one_thread  # noqa: F401
from tests.test_faults import limited

STAGES = {
    "dataset": lambda world: world.dataset("out/dataset"),
    "proposals": lambda world: world.shard("val", "out/val-000.parquet"),
    "recall": lambda world: world.recall("out"),
    "crops": lambda world: world.crops("stage2", "out", "out/stage2.parquet"),
    "infer": lambda world: world.infer("deconvnet", "out/scores"),
    "ensemble": lambda world: world.ensemble("out/val-000.parquet"),
    "crf": lambda world: world.crf("fcn8s", "out/val-000.parquet"),
    "evaluate": lambda world: world.evaluate("out", "out/images.parquet"),
    "report": lambda world: world.report(),
    "predict": lambda world: world.predict("pictures"),
}
TRAININGS = {
    "pretrain": lambda: pretrain.main(trained.pretraining_arguments("a")),
    "train": lambda: train.main(["stage2", *trained.arguments("a")]),
    "train_fcn": lambda: train_fcn.main(trained.arguments("a")),
    "reestimate": lambda: reestimate.main(trained.reestimation_arguments("a.pt", "a-last.pt")),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("world")):
        yield World(Path())


def found(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def sizes(files: dict[str, bytes]) -> set[int]:
    return {len(data) for data in files.values()} - {0}


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_leaves_half_a_file(world, stage):
    def run():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            call(lambda _: STAGES[stage](world), [])

    run()
    made = found(Path("out"))
    assert made
    for limit in sorted({size - 1 for size in sizes(made)} | {size // 2 for size in sizes(made)}):
        shutil.rmtree("out")
        Path("out").mkdir()
        with limited(limit), pytest.raises(InputError, match="nothing half-written is left: make room"):
            run()
        left = found(Path("out"))
        assert {name: data for name, data in left.items() if made.get(name) != data} == {}, limit
    run()
    assert found(Path("out")) == made
    shutil.rmtree("out")


@pytest.mark.parametrize("stage", TRAININGS)
def test_a_training_goes_on_once_there_is_room(folder, stage, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdout", io.StringIO())  # pytest's is a file, too
    monkeypatch.setattr("sys.stderr", io.StringIO())
    if stage == "reestimate":
        TRAININGS["train"]()
        shutil.rmtree("checkpoints")
    before = found(folder)

    def run():
        call(lambda _: TRAININGS[stage](), [])

    def made():
        return {name: data for name, data in found(folder).items() if before.get(name) != data}

    run()
    whole = made()
    for limit in sorted(size - 1 for size in sizes(whole)):
        shutil.rmtree("checkpoints", ignore_errors=True)
        for name in whole.keys() - before.keys():
            Path(name).unlink(missing_ok=True)
        with limited(limit), pytest.raises(InputError, match="nothing half-written is left: make room"):
            run()
        assert not [name for name in made() if name.endswith(".tmp")]
        run()
        again = made()
        assert {name for name in whole if again.get(name) != whole[name]} == set(), limit
