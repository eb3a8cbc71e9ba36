"""`python -m benchmarks [name ...]`: run the named benchmarks, or all, each in a process and a temporary folder."""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiment.machine import cores

names = sys.argv[1:] or sorted(path.stem[6:] for path in Path(__file__).parent.glob("bench_*.py"))
if len(names) > 1:  # what one sets, such as a number of threads, is not the next one's
    for name in names:
        subprocess.run([sys.executable, "-m", "benchmarks", name], check=True)
    sys.exit()
name = names[0]
module = importlib.import_module(f"benchmarks.bench_{name}")
with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
    os.chdir(folder)
    print(f"{name}: {module.__doc__.splitlines()[0]}")
    print(f"{cores()} cores, load average before {os.getloadavg()[0]:.1f}", flush=True)
    module.main(Path(folder))
    os.chdir("/")
