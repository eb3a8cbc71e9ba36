"""An experiment: a folder with a params.yaml. What its commands share, and the commands beside the DAG."""

import signal
import sys

if sys.argv[:1] == ["-m"]:  # a command that still imports: Ctrl-C ends it without a traceback; `cli.run` takes over
    signal.signal(signal.SIGINT, signal.SIG_DFL)
