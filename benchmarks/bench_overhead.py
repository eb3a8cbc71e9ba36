"""What DVC and Snakemake add to the plain commands of each stage; a `dvc repro` with nothing to do.

The stages of a small demo run once through DVC, and once as the plain commands that this came down to (each is recorded
in data/times), with one core for either. What the tools add does not grow with the work, except for the hashes of what
a stage made. Nothing to do: in that demo, and in the paper's experiment, whose files are there in their number and
size.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

from dvc.repo import Repo

from benchmarks import world

SHARDS = 48
SIZES = {  # bytes: 12,031 images, 1,449 of them val, each of 115 kB, 2,000 boxes, scores of 1.16 MB; weights of 4 bytes
    "data/archives/voc_trainval.tar": 2.0e9,
    "data/archives/sbd.tgz": 1.4e9,
    "data/weights/": 138e6 * 4,
    "data/dataset": 12_031 * 115e3,
    "data/proposals": 12_031 * 2_000 * 28,
    "data/crops/stage1": 200e3 * 40,
    "data/crops/stage2": 2.7e6 * 40,
    "data/models/fcn8s": 134e6 * 4,
    "data/models/": 252e6 * 4,
    "data/scores/": 1_449 * 1.16e6,
    "data/labels/": 1_449 * 10e3,
}


def cpu(pid: int) -> float:
    """Seconds of processor that a process and its children so far have had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def seconds(folder: Path, *command: str) -> tuple[float, float]:
    """Of clock and processor, for a command."""
    begin, before = time.perf_counter(), cpu(os.getpid())
    printed = world.call(*command, folder=folder, PYTHONPATH=str(folder.parent))
    assert "Running stage" not in printed, printed
    return time.perf_counter() - begin, cpu(os.getpid()) - before


def nothing_to_do(experiment: Path, runs: int = 7) -> str:
    clock, processor = zip(*(seconds(experiment, "dvc", "repro") for _ in range(runs)), strict=True)
    return (
        f"a `dvc repro` with nothing to do takes {statistics.median(clock):.2f} s, of the processor "
        f"{statistics.median(processor):.2f} s (medians of {runs}; least {min(clock):.2f}, {min(processor):.2f})"
    )


def paper(root: Path) -> tuple[int, int]:
    """Sparse files, all different, for what the experiment in `root` makes; their number and bytes."""
    files = []
    for out in Repo(root).index.outs:
        path = Path(out.fs_path).relative_to(root)
        if path.parts[0] in ("data", "reports"):
            size = next((size for start, size in SIZES.items() if str(path).startswith(start)), 0)
            parts = [path] if path.suffix else [path / f"{number:03d}.parquet" for number in range(SHARDS)]
            files += [(part, int(size / len(parts))) for part in parts]
    for name, size in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(name))
        os.truncate(path, max(size, path.stat().st_size))
    return len(files), sum(size for _, size in files)


def plain(record: Path) -> list[str]:
    """The command that a record of data/times is of."""
    run = json.loads(record.read_text())
    module = "demo.world.archives" if run["module"] == "archives" else f"stages.{run['module']}"
    return [sys.executable, "-m", module, *run["arguments"]]


def stages(tools: Path, bare: Path) -> dict[str, list[float]]:
    """Seconds of every stage, until the next one's begin: clock and processor of the plain commands, and through DVC.

    DVC is halted while the plain commands run in the other experiment: both must have the machine in the same state.
    """
    (tools / "config.yaml").write_text("cores: 1\n")
    environment = world.environment(SNAKEMAKE_PROFILE=str(tools))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "process_group": 0}
    process = subprocess.Popen(["dvc", "repro"], cwd=tools, env=environment, **streams)
    seen, rows, printed = set(), {}, []
    stage, begin, before = "dvc", time.perf_counter(), 0.0
    try:
        for line in chain(process.stdout, [""]):
            printed.append(line)
            if not line or line.startswith("Running stage '"):
                clock, after = time.perf_counter() - begin, cpu(process.pid)
                os.killpg(process.pid, signal.SIGSTOP)
                records = sorted(set(tools.glob("data/times/*.json")) - seen)  # their names begin with the time
                spent = [seconds(bare, *plain(record)) for record in records]
                rows[stage] = [sum(part[0] for part in spent), sum(part[1] for part in spent), clock, after - before]
                stage, begin, before, seen = line[15:-3], time.perf_counter(), after, seen.union(records)
                os.killpg(process.pid, signal.SIGCONT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.wait() == 0, "".join(printed)
    return rows


def main(folder: Path, rounds: int = 1) -> None:
    os.environ["DVC_SITE_CACHE_DIR"] = str(folder / "site")  # DVC's memory of hashes goes with the folder
    os.environ["OMP_NUM_THREADS"] = "1"  # one core for all
    runs = []
    for number in range(rounds):
        tools, bare = (world.repository(folder / f"{name}{number}") for name in ("tools", "bare"))
        runs.append(stages(tools, bare))
    rows = {stage: [min(values) for values in zip(*(run[stage] for run in runs), strict=True)] for stage in runs[0]}
    rows["sum"] = [sum(values) for values in zip(*rows.values(), strict=True)]
    print(f"{'seconds':20}{'plain commands':>20}{'through DVC':>20}{'added':>20}")
    print(f"{'stage':20}" + 3 * f"{'clock':>12}{'cpu':>8}")
    for stage, row in rows.items():
        row += [row[2] - row[0], row[3] - row[1]]
        print(f"{stage:20}" + "".join(f"{value:{width}.2f}" for value, width in zip(row, 3 * [12, 8], strict=True)))
    print(f"the small demo: {nothing_to_do(tools)}; under 3 s is wanted", flush=True)

    root = tools.parent
    count, size = paper(root)
    seconds(root, "dvc", "config", "--local", "cache.type", "hardlink")  # a copy would fill the files' holes
    clock, _ = seconds(root, "dvc", "commit", "--force", "--quiet", "dvc.yaml")
    print(f"the paper's experiment: {count} files of {size / 1e9:.1f} GB hashed and linked in {clock:.0f} s, "
          f"{size / 1e9 / clock:.2f} GB/s; {nothing_to_do(root)}; under 10 s is wanted")  # fmt: skip
