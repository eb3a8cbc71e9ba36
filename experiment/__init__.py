"""An experiment: a folder with a params.yaml. What its commands share, and the commands beside the DAG."""
