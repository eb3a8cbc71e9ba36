"""docs/walkthrough.ipynb runs from its first cell to its last on an experiment of tiny models."""

import nbclient
import nbformat
import yaml

from deconvnet.nets import files
from tests.deconvnet.test_inference import make_net
from tests.pipeline import REPOSITORY
from tests.world import CLASSES, write_dataset

NOTEBOOK = REPOSITORY / "docs/walkthrough.ipynb"


def write_models(experiment):
    """A picture of val, a DeconvNet and an FCN-8s, and the demo's parameters for them."""
    (experiment / "data").mkdir(parents=True)
    write_dataset(experiment / "data/dataset", 1)
    (experiment / "data/dataset/train-000.parquet").rename(experiment / "data/dataset/val-000.parquet")
    params = yaml.safe_load((REPOSITORY / "demo/params.yaml").read_text())
    params["dataset"]["classes"] = CLASSES
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    about = {"classes": CLASSES, "windows": {key: params["crops"][key] for key in ("context", "square")}}
    about |= {key: params["train_fcn"][key] for key in ("canvas", "scale")}
    for kind, name in (("deconvnet", "deconvnet"), ("fcn", "fcn8s")):
        net = make_net(kind, len(CLASSES))
        (experiment / "data/models").mkdir(exist_ok=True)
        files.save(experiment / f"data/models/{name}.pt", net.spec, net.state_dict(), about)


def test_every_cell_runs(tmp_path, monkeypatch):
    write_models(tmp_path / "experiment")
    monkeypatch.setenv("DECONVNET_EXPERIMENT", str(tmp_path / "experiment"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is committed has no results
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    printed = "".join(output.get("text", "") for output in outputs)
    assert "EDeconvNet+CRF: " in printed
    assert not any(output["output_type"] == "stream" and output["name"] == "stderr" for output in outputs)
    nbformat.write(notebook, tmp_path / "executed.ipynb")
