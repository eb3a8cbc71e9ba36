"""Checkpoints: damage, the files of best weights, no hard links."""

import pytest
import torch

from deconvnet.training import checkpoints as module


class Checkpoints(module.Checkpoints):
    """Written when `save` returns."""

    def save(self, state):
        super().save(state)
        self.wait()


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def state(step, best=None):
    return {"step": step, "best_file": best, "net": {"weight": torch.full((1000,), float(step))}}


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(path.read_bytes()[:500]),
                                  lambda path: path.write_bytes(b""), lambda path: path.unlink()])  # fmt: skip
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, harm):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    harm(tmp_path / "checkpoint.pt")
    resumed = Checkpoints(tmp_path)
    found, line = resumed.load()
    assert found["step"] == 1 and "\n" not in line
    assert ("checkpoint.pt: " in line and "continuing from previous.pt, after step 1" in line) or not line
    resumed.save(state(2))  # the torn one must not take the place of the good one
    assert Checkpoints(tmp_path).load()[0]["step"] == 2
    harm(tmp_path / "checkpoint.pt")
    assert Checkpoints(tmp_path).load()[0]["step"] == 1


def test_no_checkpoint_that_holds_starts_afresh(tmp_path):
    assert Checkpoints(tmp_path).load() == (None, "")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    damage(tmp_path / "checkpoint.pt")
    (tmp_path / "previous.pt").write_bytes(b"junk")
    found, line = Checkpoints(tmp_path).load()
    assert found is None and line.endswith("starting afresh") and "\n" not in line


def test_best_weights_count_through_a_checkpoint_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.save_best(500, {"weight": torch.zeros(1)})
    checkpoints.save(state(500, first))
    second = checkpoints.save_best(1000, {"weight": torch.ones(1)})  # killed here: of a part of the run that is lost
    resumed = Checkpoints(tmp_path)
    found, _ = resumed.load()
    assert first == "best-00000500.pt" and found["best_file"] == first
    assert float(resumed.load_best(found["best_file"])["weight"]) == 0
    resumed.save(state(1000, first))
    assert (tmp_path / first).exists() and not (tmp_path / second).exists()


def test_best_weights_stay_as_long_as_a_checkpoint_names_them(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(state(step, checkpoints.save_best(step, {"weight": torch.full((1000,), float(step))})))
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-00000002.pt", "best-00000003.pt"]
    damage(tmp_path / "best-00000003.pt")
    found, line = Checkpoints(tmp_path).load()
    assert found["step"] == 2 and "best-00000003.pt: damaged" in line
    checkpoints.finish(state(4, "best-00000002.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000002.pt", "checkpoint.pt"]


def test_checkpoints_need_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.delattr("os.link")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    assert torch.load(tmp_path / "previous.pt")["step"] == 1
