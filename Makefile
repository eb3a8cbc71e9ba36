# Everything runs in .venv, which the first target that needs it makes from requirements.txt.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# The pipeline starts some forty processes, each of which imports DVC, Snakemake or PyTorch: the first leaves its bytecode
# to the others. (To compile all of .venv at its installation takes 20 s, four times as long.)
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv/installed
UV := $(or $(shell command -v uv),.uv/bin/uv)
BOOTSTRAP := $(filter .uv/bin/uv,$(UV))
SNAKEFILES := workflow/Snakefile workflow/rules

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: $(VENV)  ## make .venv, the environment that everything runs in
	@echo 'now: . .venv/bin/activate'

.PHONY: demo
demo: $(VENV)  ## the whole pipeline on a small synthetic dataset, in minutes
	cd demo && dvc repro
	@echo 'To go on: . .venv/bin/activate'

.PHONY: claims
claims: demo  ## the paper's claims, tested: variants of the demo with three seeds each, hours
	cd claims && dvc repro
	cp -R claims/reports/claims.md claims/reports/claims docs

.PHONY: check
check: $(VENV)  ## check the paper's params.yaml, and say what a run would need
	python -m experiment.check

.PHONY: repro
repro: $(VENV)  ## the paper: the whole pipeline on PASCAL VOC 2012 and SBD
	python -m experiment.check
	dvc repro fetch
	dvc repro

.PHONY: test
test: $(VENV)  ## the tests
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: lint
lint: $(VENV)  ## style of Python and Snakemake files
	ruff check .
	ruff format --check .
	snakefmt --check --diff $(SNAKEFILES)

.PHONY: format
format: $(VENV)  ## mend the style
	ruff check --fix .
	ruff format .
	snakefmt $(SNAKEFILES)

.PHONY: bench
bench: $(VENV)  ## speed against plain equivalents, as ratios of one run
	python -m benchmarks

.PHONY: bench-gpu
bench-gpu: $(VENV)  ## speed at the paper's size on this machine's GPU
	python -m benchmarks gpu

# Every experiment is a DVC project of its own, and all share one cache: a remote must be told to each of them, and
# cleaning must ask each of them what it needs.
EXPERIMENTS = $(patsubst %.dvc/config,%,$(shell git ls-files '.dvc/config' '*/.dvc/config'))

.PHONY: remote
remote: $(VENV)  ## make remote URL=s3://bucket/deconvnet (or an absolute folder): where all experiments are shared
	@test -n '$(URL)' || { echo 'error: make remote URL=s3://bucket/folder, or URL=/absolute/folder'; exit 1; }
	for folder in $(EXPERIMENTS:%=./%); do (cd $$folder && dvc remote add --force --default store '$(URL)' \
	    && dvc remote modify store verify true) || exit; done

.PHONY: gc
gc: $(VENV)  ## drop from the cache what no experiment's workspace needs
	dvc gc --workspace --projects $(filter-out ./,$(EXPERIMENTS:%=./%))

.PHONY: lock
lock: $(BOOTSTRAP)  ## pin in requirements.txt what pyproject.toml asks for
	$(UV) pip compile pyproject.toml --all-extras --group pipeline --group dev --universal --generate-hashes \
	    --custom-compile-command 'make lock' --quiet --output-file requirements.txt

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv==0.13.8

# sync: what requirements.txt no longer names goes, so that the environment is that file and nothing else.
# repository.pth: `python -m experiment.predict` and `import deconvnet` work in every folder.
# pydensecrf2 is compiled: where the machine's Python came without its headers, uv's own Python, which has them, serves.
$(VENV): requirements.txt | $(BOOTSTRAP)
	$(UV) venv --quiet --allow-existing --python '>=3.11,<3.13' .venv
	.venv/bin/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("include"), "Python.h").stat()' \
	    2> /dev/null || $(UV) venv --quiet --clear --managed-python --python '>=3.11,<3.13' .venv
	$(UV) pip sync --quiet --python .venv/bin/python --require-hashes requirements.txt
	echo '$(CURDIR)' > "$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/repository.pth"
	touch $@
