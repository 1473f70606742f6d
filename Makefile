# `make help` lists the targets. Everything lives in .venv and .demo; `make clean` removes both.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# One worker a core; each test process keeps to one thread.
TEST_WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-gpu lint docs format compile images publish lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/.demo: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11; name a newer one: make demo PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "▸ install eosin and what it needs into $(VENV) (once)"
	@$(PIP) install -q --disable-pip-version-check -c constraints.txt torch
	@$(PIP) install -q --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "▸ install what tests and linters need"
	@$(PIP) install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# What decodes on a GPU has a way on a CPU as well; without the CUDA libraries, gigabytes, that cuCIM would bring.
	@$(PIP) install -q --disable-pip-version-check --no-deps 'cucim-cu13>=26.10' 'nvidia-nvimgcodec-cu13>=0.9' lazy-loader \
	  || echo "cuCIM and nvImageCodec are not made for this machine: the tests that need them will skip"
	@$(BIN)/python tests/support/tools.py || echo "helm and kubectl could not be fetched: the tests that need them will skip"
	@touch $@

demo: $(VENV)/.demo ## The whole pipeline on this machine: make demo [SLIDES=path-or-s3-uri] [OVERRIDES=file.csv]
	@$(BIN)/eosin demo $(if $(SLIDES),--slides "$(SLIDES)") $(if $(OVERRIDES),--overrides "$(OVERRIDES)") \
	  $(if $(PORT),--port "$(PORT)")

test: $(VENV)/.dev ## The tests: no GPU, no cluster, no internet
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-long: $(VENV)/.dev ## The long campaigns: fuzzing, many kills
	@$(BIN)/python -m pytest -m long --timeout=7200

test-gpu: $(VENV)/.dev ## The GPU tests; they skip where there is none
	@$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev ## The documentation site, its links checked: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "open build/site/index.html"

format: $(VENV)/.dev ## Rewrite the sources in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

compile: $(VENV)/.dev ## Compile the pipelines and generate the reference docs
	@$(BIN)/python -m eosin_pipelines.pretrain
	@$(BIN)/python -m eosin_pipelines.evaluate
	@$(BIN)/python -m eosin_pipelines.retrain
	@$(BIN)/python -m eosin_pipelines.scaling_study
	@$(BIN)/python helm/generate.py
	@$(BIN)/python docs/generate.py

images: ## Build the three images with docker buildx
	@images/publish.sh

publish: ## Push images and chart, and write their digests: make publish REGISTRY=registry.example.com/lab
	@test -n "$(REGISTRY)" || { echo "error: name the registry: make publish REGISTRY=host/path" >&2; exit 2; }
	@images/publish.sh "$(REGISTRY)"

lock: $(VENV)/.dev ## Resolve the images' requirements again, with hashes
	@$(PIP) install -q uv
	@UV=$(CURDIR)/$(BIN)/uv images/lock.sh

clean: ## Remove the environment and the demo's data
	@rm -rf $(VENV) .demo build dist src/eosin.egg-info
