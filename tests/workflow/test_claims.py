"""claims/ end to end in a small world, and what it refuses."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from deconvnet import tables
from deconvnet.images import decode_mask
from deconvnet.metrics import confusion
from deconvnet.provenance import closure
from tests.pipeline import REPOSITORY, call, clone, repro

TINY = {
    "seeds": [1], "common": {},
    "rates": {"steps": 2, "seed": 0, "tried": [0.05], "variants": ["both_stages"]},
    "variants": {
        "both_stages": {},
        # the second is of another kind than the encoder's run: it has to diverge, and that is a result
        "no_batch_norm": {"train": {"batch_norm_eps": None, "stage1": {"lr": 1e30}}},
    },
    "measures": {"sizes": [256, 1296, 2916], "boundary": [1, 4], "thin": 7}, "rule": {"margin": 0.5, "rounds": 200},
}  # fmt: skip


def write_claims(world, **changes):
    """A folder claims/ beside the experiment `world`."""
    folder = world.parent / "claims"
    shutil.copytree(REPOSITORY / "claims/.dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    shutil.copy(REPOSITORY / "claims/dvc.yaml", folder)
    params = yaml.safe_load((REPOSITORY / "claims/params.yaml").read_text()) | TINY | changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def test_all_of_it(built, tmp_path):
    folder = write_claims(clone(built, tmp_path / "repository"))
    shutil.copy(built / ".dvc/config.local", folder / ".dvc") if (built / ".dvc/config.local").exists() else None
    repro(folder)

    found = pd.read_csv(folder / "reports/claims.csv").set_index("comparison")
    said = json.loads((folder / "reports/claims.json").read_text())["verdicts"]
    assert sorted(said) == [*"abcdefg"] and said["g"] == "not run"  # no variant of it is there
    assert found.loc["with batch norm over without", ["verdict"]].item() == "holds" == said["d"]
    assert (
        found.loc["with batch norm over without", "difference"]
        != found.loc["with batch norm over without", "difference"]
    )
    assert {"EDeconvNet over FCN-8s", "CRF for DeconvNet, normalization none"} <= {*found.index}
    assert "both stages over stage 2 alone" not in found.index  # that variant was not asked for
    page = (folder / "reports/claims.md").read_text()
    assert "| with batch norm over without | diverged |" in page
    for name in ("forest.svg", "a.svg", "growth.svg", "sizes.svg"):
        assert f"(claims/{name})" in page and (folder / "reports/claims" / name).stat().st_size > 1000

    # one table against its own labels, counted another way
    table = tables.read(folder / "data/counts/systems-1.parquet").to_pandas()
    assert set(table["system"]) >= {
        "deconvnet",
        "fcn8s",
        "edeconvnet",
        "product",
        "average",
        "random",
        "not_reestimated",
    }
    assert "pair" not in set(table["system"])  # one seed has no second one
    truth = {row["image_id"]: decode_mask(row["class_mask"])
             for shard in (folder / "../demo/data/dataset").glob("val-*.parquet")
             for row in tables.read(shard).to_pylist()}  # fmt: skip
    whole = table[table["region"] == "all"]
    labelled = whole[whole["labels"].notna()]
    assert len(labelled) == len(truth) * labelled["system"].nunique()
    for row in labelled.itertuples():
        matrix = confusion(truth[row.image_id], decode_mask(row.labels), 11)
        assert np.array_equal(row.right, np.diag(matrix)) and np.array_equal(row.true, matrix.sum(1))
        assert np.array_equal(row.predicted, matrix.sum(0))
    growing = table[table["system"].str.startswith("deconvnet after")]
    last = growing[growing["system"] == "deconvnet after 5"].set_index("image_id")["right"]
    five = whole[whole["system"] == "deconvnet"].set_index("image_id")["right"]  # infer.deconvnet.proposals is 5
    assert all(np.array_equal(last[name], five[name]) for name in truth)

    assert "up to date" in call(folder, "dvc", "repro").stdout
    assert "didn't change" in call(folder, "dvc", "repro", "train@both_stages-1").stdout


RUNS = {  # what the processes of each stage import and read
    "rate": ["experiment/claims/train.py", "stages/train.py", "stages/crops.py"],
    "rates": ["experiment/claims/train.py"],
    "train": ["experiment/claims/train.py", "stages/train.py", "stages/crops.py"],
    "fcn8s": ["experiment/claims/train.py", "stages/train_fcn.py"],
    "variant": ["experiment/claims/measure.py", "stages/reestimate.py", "stages/crops.py", "stages/infer.py",
                "deconvnet/inference/shards.py"],
    "claims": ["experiment/claims/report.py"],
}  # fmt: skip
RUNS["systems"] = [*RUNS["variant"], "stages/ensemble.py", "stages/crf.py"]
RULES = {"variant": ["infer"], "systems": ["crf", "ensemble", "infer"]}  # that make shards


def test_every_stage_lists_the_code_that_it_runs():
    document = yaml.safe_load((REPOSITORY / "claims/dvc.yaml").read_text())["stages"]
    assert document.keys() == RUNS.keys()
    for name, stage in document.items():
        listed = {dep.removeprefix("${root}/") for dep in stage["deps"] if dep.startswith("${root}/")}
        expected = {str(path.relative_to(REPOSITORY)) for module in RUNS[name] for path in closure(REPOSITORY / module)}
        if name in RULES:
            expected |= {"workflow/Snakefile", *(f"workflow/rules/{rule}.smk" for rule in RULES[name])}
        assert listed == expected, name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variants": {"bilinear": {}}}, "params.yaml: variants.both_stages: has to be there"),
        ({"variants": {"both_stages": {}, "other": {"trained": ["stage3"]}}}, "params.yaml: variants.other: "),
        ({"variants": {"both_stages": {}, "other": 3}}, "params.yaml: variants.other: 3 is not allowed"),
        ({"common": None}, "params.yaml: common: None is not allowed"),
        ({"seeds": ["one"]}, "params.yaml: seeds"),
        ({"measures": TINY["measures"] | {"thin": 6}}, "thin: 6 is not allowed; allowed: an odd number"),
        ({"experiment": "../nowhere"}, "params.yaml: experiment: ../nowhere: has no params.yaml"),
        ({"rates": TINY["rates"] | {"variants": ["both_stages", "odd"]}}, "rates.variants: odd is none of"),
        ({"rates": TINY["rates"] | {"variants": ["no_batch_norm"]}}, "rates.variants: both_stages has to be there"),
        ({"extra": 1}, "params.yaml: extra: unknown section"),
        ({"common": {"train": {"unpoling": "bilinear"}}}, "data/cells/both_stages-1/params.yaml: train.unpoling"),
    ],
)  # fmt: skip
def test_what_is_refused(changes, message, tmp_path):
    (tmp_path / "demo").mkdir()
    shutil.copy(REPOSITORY / "demo/params.yaml", tmp_path / "demo")
    folder = write_claims(tmp_path / "demo", **changes)
    (folder / "data").mkdir()
    (folder / "data/rates.json").write_text('{"chosen": {"both_stages": 0.1}}')
    done = call(folder, "python", "-m", "experiment.claims.train", "train", "both_stages", "1", "--out", "x.pt",
                PYTHONPATH=str(REPOSITORY))  # fmt: skip
    assert done.returncode == 1 and not (folder / "x.pt").exists()
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_best_rate_is_chosen():
    from deconvnet.errors import InputError
    from experiment.claims.train import choose

    def trial(variant, lr, found, loss=1.0):
        return {"variant": variant, "lr": lr, "held_out_mean_iou": found, "held_out_loss": loss}

    tried = [trial("one", 0.1, 0.3), trial("one", 0.2, 0.4), trial("one", 0.4, 0.4, 0.9), trial("two", 0.1, None),
             trial("two", 0.01, 0.1)]  # fmt: skip
    # of equal ones that of the lower loss; what diverged has none
    assert choose(tried, ["one", "two"]) == {"one": 0.4, "two": 0.01}
    with pytest.raises(InputError, match="every rate tried for two diverged"):
        choose(tried[:4], ["one", "two"])
