# make setup   the environment in .venv       make demo   train, score and show a small FactorVAE
# make test    prove the installation         make bench  time the ops and the step
# make lint    ruff
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
FVAE := $(BIN)/fvae

.PHONY: setup demo test lint bench

setup: .venv/ready

# Made anew only when what is installed changes, so that a second run takes no time.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
# torch first and pinned: a looser requirement may fetch another build of several gigabytes.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	touch $@

demo: setup
	if test -e $(DEMO)/config.json; then $(FVAE) train --resume $(DEMO); \
	else $(FVAE) train --out $(DEMO) --steps 5000 --seed 0 \
	  --gamma 35 --warmup-steps 2000 --learning-rate 1e-3 --disc-units 256 --disc-hidden-layers 4; fi
	$(FVAE) eval $(DEMO)
	$(FVAE) report $(DEMO)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup
	$(BIN)/python -m pytest bench -m '' --benchmark-only
	$(BIN)/python -m bench.step
