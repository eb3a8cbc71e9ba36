"""Live curves: what TensorBoard reads after a training, after a kill and a resumption, and without TensorBoard."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deconvnet import progress
from experiment import live
from stages import pretrain
from tests.world import pretraining_arguments

ROW = {"step": 2, "lr": 0.1, "loss": 1.5, "held_out_loss": 2.0, "held_out_mean_iou": 0.25}


@pytest.fixture(autouse=True)
def followers(monkeypatch):
    monkeypatch.setattr(progress, "followers", [])


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def run(folder, first: int, last: int, rows: list[dict], killed: bool = False) -> None:
    """A training's bar from step `first` on, to the end or to a kill."""
    progress.followers[:] = [live.Curves(folder)]
    bar = progress.progress(total=9, initial=first - 1)
    for step in range(first, last + 1):
        bar.set_postfix_str(f"loss {step}", step=step, loss=step / 2, lr=0.1, rows=rows)
        with progress.progress(total=1):  # another bar within ends without ending the curves
            pass
        if step == 2:
            rows.append(ROW)
    if killed:
        progress.followers[0].writer.flush()
        progress.followers.clear()
    bar.close()


def test_a_killed_training_goes_on_without_doubles(tmp_path):
    run(tmp_path, 1, 5, [], killed=True)  # its last checkpoint is of step 3
    run(tmp_path, 4, 7, [ROW])
    found = curves(tmp_path)
    assert found["training/loss"] == [(step, step / 2) for step in range(1, 8)]
    assert found["held out/mean_iou"] == [(2, 0.25)] and found["held out/loss"] == [(2, 2.0)]
    assert set(found) == {"training/loss", "training/learning rate", "held out/mean_iou", "held out/loss"}
    run(tmp_path, 1, 2, [])  # afresh: the last row is written though no step follows it
    found = curves(tmp_path)
    assert [step for step, _ in found["training/loss"]] == [1, 2] and found["held out/mean_iou"] == [(2, 0.25)]


def test_a_training_is_followed_and_not_changed(folder):
    pretrain.main(pretraining_arguments("alone"))
    (folder / "data").mkdir()
    live.follow(pretraining_arguments("followed"))
    pretrain.main(pretraining_arguments("followed"))
    assert (folder / "followed.pt").read_bytes() == (folder / "alone.pt").read_bytes()
    found = curves(folder / "data/live/followed")
    assert [step for step, _ in found["training/loss"]] == [*range(1, 9)]
    assert [step for step, _ in found["held out/mean_iou"]] == [4, 8]
    assert found["training/learning rate"][0][1] == pytest.approx(0.05 / 3)  # of the warm-up
    assert found["training/learning rate"][-1][1] == pytest.approx(0.005)  # dropped at 6


def test_without_tensorboard_nothing_is_written_or_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run(tmp_path / "live", 1, 2, [])
    assert not (tmp_path / "live").exists() and not capsys.readouterr().out


def test_a_folder_that_cannot_be_written_stops_no_training(tmp_path, capsys):
    (tmp_path / "live").write_text("a file")
    run(tmp_path / "live/run", 1, 2, [])
    assert capsys.readouterr().out.count("training goes on without live curves") == 1


def test_other_commands_are_not_followed(folder):
    live.follow(pretraining_arguments("a"))  # outside of an experiment: no folder data
    (folder / "data").mkdir()
    live.follow(["--dataset", "data/dataset"])
    live.follow(["--curves"])
    assert not progress.followers
