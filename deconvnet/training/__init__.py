"""Training: the loop, its checkpoints and metrics, the devices that it runs on."""
