"""README's own blocks, run literally and in order in one fresh shell."""

import json
import re
import shutil
import subprocess

import numpy as np
from PIL import Image

from deconvnet.systems import SYSTEMS
from experiment.report.numbers import percent
from tests.pipeline import REPOSITORY, clone, git

README = (REPOSITORY / "README.md").read_text()
ELSEWHERE = {"make demo\nmake test\n"}  # .ci/run runs them


def test_the_blocks_of_the_readme(built, tmp_path):
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.M | re.S)
    assert {block for _, block in blocks} >= ELSEWHERE
    script = ["set -euo pipefail"]
    for language, block in blocks:
        if block in ELSEWHERE:
            continue
        script.append(f"python - <<'END'\n{block}END" if language == "python" else block)
    world = clone(built, tmp_path / "repository").parent
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, world)
    shutil.copytree(REPOSITORY / "small", world / "small", ignore=shutil.ignore_patterns("data", "reports"))
    (world / ".venv").symlink_to(REPOSITORY / ".venv")
    pixels = np.random.default_rng(0).integers(0, 255, (120, 150, 3), np.uint8)
    Image.fromarray(pixels).resize((600, 480)).save(world / "photo.jpg")
    shell = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    shell |= {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=world, env=shell, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    labels = Image.open(world / "photo_labels.png")
    assert labels.size == (600, 480)
    found = {path.name for path in (world / "demo/predicted").iterdir()}
    assert found == {"photo.png", "photo_overlay.png", "photo.json"}
    assert re.search(r"params.yaml: every key is there", done.stdout)
    assert re.search(r"reports/mean_iou.json +mean_iou.edeconvnet +0\.\d+", done.stdout)


def test_numbers_of_the_demo_are_the_committed_report_s():
    """The README's table says what demo/reports says, rounded once. A run here may have made other reports since."""
    metrics = json.loads(git(REPOSITORY, "show", "HEAD:demo/reports/metrics.json"))
    rows = {line.split("|")[1].strip(): line for line in README.splitlines() if line.startswith("|")}
    for key, system in SYSTEMS.items():
        values = [percent(metrics[key][name]) for name in
                  ("mean_iou", "pixel_accuracy", "small", "medium", "large", "boundary")]  # fmt: skip
        assert [cell.strip() for cell in rows[system.name].split("|")[2:-1]] == values
