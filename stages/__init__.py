"""DeconvNet's stages: one module per node of the DAG in dvc.yaml, plus the few libraries they share."""
