# make demo · lab · test · bench · lint; each does the set-up it needs. Everything lands in .venv/ and .tools/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

setup:  ## virtual environment, the JupyterLab panel and, as root, system parts
	@scripts/setup.sh lab

demo:  ## run examples/quickstart.ipynb through a real kernel and show what happened
	@scripts/setup.sh run
	@$(PYTHON) scripts/demo.py

lab: setup  ## JupyterLab on examples/
	@CELLBURST_SIMULATE_GPUS=$${CELLBURST_SIMULATE_GPUS-A100:1} .venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) examples

test:  ## set-up and all tests
	@scripts/setup.sh test
	@scripts/test.sh

bench: setup  ## measure against the peers in the same run; writes docs/benchmarks.md
	@$(PYTHON) -m bench

lint: setup  ## ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

.PHONY: help setup demo lab test bench lint
