"""`python -m benchmarks [name ...]`: run the named benchmarks, or all, in a temporary folder."""

import importlib
import os
import sys
import tempfile
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
names = sys.argv[1:] or sorted(path.stem[6:] for path in Path(__file__).parent.glob("bench_*.py"))
print(f"{os.cpu_count()} cores")
for name in names:
    module = importlib.import_module(f"benchmarks.bench_{name}")
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
        os.chdir(folder)
        print(f"\n{name}: {module.__doc__.splitlines()[0]}", flush=True)
        module.main(Path(folder))
        os.chdir("/")
