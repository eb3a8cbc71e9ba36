"""The DAG's nodes, a module each: parameters and files in, library calls, whole files out."""

import experiment  # noqa: F401 - first, that Ctrl-C ends the imports without a traceback
