# `make help` lists the targets. Everything lives in .venv and .demo; `make clean` removes both.
SHELL := /bin/bash
# The first that the lock is made for.
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
  $$each -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$each && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# One worker a core; each test process keeps to one thread.
TEST_WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-gpu gpu-report test-cluster kind-verify test-newest lint docs format compile wheel images publish lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

# What is there and whole is left alone; what an interrupted install left is made anew.
.PHONY: environment-demo environment-test environment-newest
environment-demo environment-test environment-newest: environment-%:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; name one: make demo PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) environment/install.py $* --venv $(VENV)

demo: environment-demo ## The whole pipeline on this machine: make demo [SLIDES=path-or-s3-uri] [OVERRIDES=file.csv]
	@$(BIN)/eosin demo $(if $(SLIDES),--slides "$(SLIDES)") $(if $(OVERRIDES),--overrides "$(OVERRIDES)")

test: environment-test ## The tests: no GPU, no cluster, no internet but package mirrors
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-long: environment-test ## The long campaigns: fuzzing, many kills
	@$(BIN)/python -m pytest -m long --timeout=7200

test-gpu: environment-test ## The GPU tests; they skip where there is none
	@$(BIN)/python -m pytest -m gpu

gpu-report: environment-test ## tests/gpu and every GPU benchmark, ten minutes a part at most: build/gpu-report/report.md
	@$(BIN)/python benchmarks/gpu_report.py

test-cluster: environment-test ## The tests of a real cluster: the one that KUBECONFIG names
	@EOSIN_TEST_CLUSTER=1 $(BIN)/python -m pytest -n 0 -rs tests/cluster

kind-verify: environment-test ## A cluster by kind on this machine, the tests of a real cluster on it, and its end
	@for tool in kind kubectl docker; do command -v $$tool >/dev/null \
	  || { echo "error: $$tool is not on the PATH" >&2; exit 2; }; done
	@set -e; config=$$(mktemp); trap 'kind delete cluster --name eosin-verify; rm -f $$config' EXIT; \
	  image="$${EOSIN_TEST_IMAGE:-eosin/train:$$($(BIN)/python -c 'import eosin; print(eosin.__version__)')}"; \
	  kind create cluster --name eosin-verify --config manifests/overlays/kind/cluster.yaml --kubeconfig $$config; \
	  kind load docker-image --name eosin-verify "$$image"; \
	  export KUBECONFIG=$$config; \
	  kubectl apply --server-side -k manifests/prerequisites; \
	  kubectl apply --server-side -f tests/cluster/workflow-crd.yaml; \
	  kubectl wait --for=condition=Available --all deployments --all-namespaces --timeout=300s; \
	  EOSIN_TEST_STOP_NODE="docker pause NODE" EOSIN_TEST_START_NODE="docker unpause NODE" \
	  EOSIN_TEST_CLUSTER=1 EOSIN_TEST_IMAGE="$$image" $(BIN)/python -m pytest -n 0 -rs tests/cluster

test-newest: VENV := .venv-newest
test-newest: environment-newest ## The tests with every package at its newest version, past the bounds of pyproject.toml
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

lint: environment-test ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

docs: environment-test ## The documentation site, its links checked: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "open build/site/index.html"

format: environment-test ## Rewrite the sources in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

compile: environment-test ## Compile the pipelines and generate the reference docs
	@$(BIN)/python -m eosin_pipelines.pretrain
	@$(BIN)/python -m eosin_pipelines.evaluate
	@$(BIN)/python -m eosin_pipelines.retrain
	@$(BIN)/python -m eosin_pipelines.scaling_study
	@$(BIN)/python -m eosin_pipelines.decode
	@$(BIN)/python -m eosin_pipelines.embed
	@$(BIN)/python helm/generate.py
	@$(BIN)/python docs/generate.py

# What an earlier build left in build/ would come along, removed modules too.
wheel: environment-demo ## A wheel of eosin for this machine and Python: dist/eosin-*.whl
	@rm -rf build/lib* build/bdist* build/temp* dist/eosin-*.whl
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist .
	@ls dist/eosin-*.whl

images: ## Build the three images: make images [BASE=debian] [BUILDER=docker|podman|buildah]
	@BASE="$(BASE)" images/publish.sh

publish: ## Push images and chart, and write the pipelines that name them: make publish REGISTRY=registry.example.com/lab
	@test -n "$(REGISTRY)" || { echo "error: name the registry: make publish REGISTRY=host/path" >&2; exit 2; }
	@BASE="$(BASE)" images/publish.sh "$(REGISTRY)"

lock: environment-test ## Resolve every package anew, with hashes: demo, tests and images
	@$(BIN)/python environment/lock.py

clean: ## Remove the environment and the demo's data
	@rm -rf .venv .venv-newest .venv.lock .venv-newest.lock .demo build dist src/*.egg-info *.egg-info
