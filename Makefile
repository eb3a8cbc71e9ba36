# Everything runs in .venv, which the first target that needs it makes from requirements.txt.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
# DVC asks for updates and reports usage unless told not to.
export DVC_NO_ANALYTICS := 1

VENV := .venv/installed
UV := $(or $(shell command -v uv),.uv/bin/uv)

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv==0.13.8

# sync: what requirements.txt no longer names goes, so that the environment is that file and nothing else.
$(VENV): requirements.txt | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .venv
	$(UV) pip sync --python .venv/bin/python --require-hashes requirements.txt
	touch $@

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.PHONY: lock
lock: | $(filter .uv/bin/uv,$(UV))  ## pin what pyproject.toml asks for in requirements.txt
	$(UV) pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --custom-compile-command 'make lock' --quiet --output-file requirements.txt
