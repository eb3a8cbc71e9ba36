"""DeconvNet's stages: one module per node of the DAG in dvc.yaml, plus the few libraries they share."""

import multiprocessing
import signal
import sys

# Ctrl-C while `python -m stages.x`, or a process of its pool, is still importing ends it without a traceback.
if sys.argv[0] == "-m" or multiprocessing.parent_process():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
