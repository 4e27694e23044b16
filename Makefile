# The project's commands. `make` alone lists them.
SHELL := /bin/bash
ORCHESTRATOR := .venv/orchestrator/bin/python
COMPONENTS := .venv/components/bin/python
ifneq ($(words $(CURDIR) $(or $(CSLM_HOME),var)),2)
$(error a path with blanks cannot be used: this checkout is "$(CURDIR)", CSLM_HOME is "$(CSLM_HOME)")
endif
export PYTHONPATH := $(CURDIR)
export CSLM_HOME := $(abspath $(or $(CSLM_HOME),var))
export AIRFLOW_PORT MLFLOW_PORT CHAT_PORT PROFILE SET FORCE REF RUN BASE CSLM_DVC_REMOTE CSLM_RUNNER CSLM_REGISTRY OVERLAY
# Libraries keep their caches here, not in the home folder.
export XDG_CACHE_HOME := $(CSLM_HOME)/cache
export XDG_CONFIG_HOME := $(CSLM_HOME)/config
PYTEST := -m pytest -q --durations=5
# Two test files at a time, each on one core: the libraries' own threads would wait for one another.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
# What takes longest first, file by file: pytest would leave out a file whose folder is named too.
in_order = $(1) $(filter-out $(1),$(sort $(shell find $(2) -name 'test_*.py')))
WAITING := $(addprefix tests/infra/test_,tries.py demo.py services.py)
SLOWEST := $(addprefix tests/slow/test_,images.py tries.py ranks.py tokenize_on_ray.py)
# Needs the machine to itself: it is asked how soon it answers.
ALONE := tests/slow/test_chat.py

.DEFAULT_GOAL := help
.PHONY: help setup demo from-scratch ablations chat dags history images kubeflow kubeflow-local up corpus-landed down compose compose-down kubernetes \
	bench test test-slow test-orchestrator test-components lint clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'

setup:  ## Two locked environments, the git hook, sample data and base models
	@env -u PYTHONPATH infra/setup.sh $(ENVIRONMENTS)

demo: setup  ## Corpus to registered model, in front of you (PROFILE=, SET='key=value', BASE=, FORCE=, REF=, RUN=)
	@$(ORCHESTRATOR) -m infra.demo

from-scratch: setup  ## The same from random weights, and how long it took
	@time PROFILE=from-scratch $(ORCHESTRATOR) -m infra.demo

ablations: setup  ## Six variants of the training, compared: does each idea of the paper earn its place?
	@$(ORCHESTRATOR) -m infra.ablations

chat: setup  ## A page to talk to the registered model (MODEL=cslm, CHAT_PORT=7860)
	@$(COMPONENTS) -m components.chat --name "$(or $(MODEL),cslm)" --port "$(or $(CHAT_PORT),7860)"

history: setup  ## Who put which version into production, when and why (MODEL=cslm, ON=2026-11-27: what was there that day)
	@$(COMPONENTS) -m components.promote history --model "$(or $(MODEL),cslm)" $(if $(ON),--on $(ON))

dags: setup  ## The DAGs, when they start, and whether they can be imported
	@$(ORCHESTRATOR) -m infra.dags

images: setup  ## Container images of the components and of Airflow, by podman or docker (ONLY='validate tokenize', FROM=python:3.11-slim-bookworm)
	@$(ORCHESTRATOR) -m infra.build_images $(ONLY) $(if $(FROM),--from $(FROM))

# What needs one more environment than the two.
kubeflow kubeflow-local test test-slow: ENVIRONMENTS := kubeflow

kubeflow: setup  ## The graph as YAML for Kubeflow Pipelines (PROFILE=, SET=, BASE=, FORCE=, REF=)
	@$(ORCHESTRATOR) -m infra.kubeflow

kubeflow-local: setup  ## That YAML run here, each stage in its container (PROFILE=test; after make images)
	@$(ORCHESTRATOR) -m infra.kubeflow --local

up: setup  ## Airflow and MLflow in the background (AIRFLOW_PORT=8080, MLFLOW_PORT=5000)
	@$(ORCHESTRATOR) -m infra.services up

corpus-landed: setup  ## Tell Airflow (of make up or make compose) of new data, after dvc add: is it time to train?
	@$(ORCHESTRATOR) -m infra.corpus_landed

down:  ## Stop what make up started
	@$(ORCHESTRATOR) -m infra.services down

compose: setup  ## All of it in containers: PostgreSQL, object store, MLflow, Airflow, chat page (after make images; AIRFLOW_PORT=, MLFLOW_PORT=, CHAT_PORT=7860)
	@$(ORCHESTRATOR) -m infra.compose up

compose-down:  ## Stop what make compose started; what it keeps stays in its volumes
	@$(ORCHESTRATOR) -m infra.compose down

kubernetes: setup  ## All of it for a cluster: its manifests and the code, as files (CSLM_REGISTRY=, OVERLAY=all or trial)
	@$(ORCHESTRATOR) -m infra.cluster

bench: setup  ## Speed against baselines, into benchmarks/results.json and speed.md (half an hour; leave the machine alone)
	@$(COMPONENTS) -m benchmarks.generation
	@$(COMPONENTS) -m benchmarks.speech_units
	@$(COMPONENTS) -m benchmarks.speaking
	@$(COMPONENTS) -m benchmarks.first_sound
	@$(COMPONENTS) -m benchmarks.training_step
	@$(COMPONENTS) -m benchmarks.padded_training --phase pretrain --steps 100 --turns 2
	@$(COMPONENTS) -m benchmarks.padded_training --phase finetune
	@$(COMPONENTS) -m benchmarks.corpus
	@$(ORCHESTRATOR) -m benchmarks.orchestration

test: setup  ## The test suite, but for what takes long or needs the machine to itself
	@$(MAKE) --no-print-directory test-orchestrator test-components

test-slow: setup  ## The whole graph in containers, in pods, in an object store; the pages in a browser; many ranks
	@$(COMPONENTS) $(PYTEST) $(ALONE)
	@OMP_NUM_THREADS=1 $(COMPONENTS) $(PYTEST) $(TWO) $(filter-out $(ALONE),$(call in_order,$(SLOWEST),tests/slow))

test-orchestrator:  ## Tests of dags/ and infra/
	@OMP_NUM_THREADS=1 $(ORCHESTRATOR) $(PYTEST) $(TWO) $(call in_order,$(WAITING),tests/dags tests/infra)

test-components:  ## Tests of cslm/, components/, benchmarks/ and the whole
	@OMP_NUM_THREADS=1 $(COMPONENTS) $(PYTEST) $(TWO) $(wildcard tests/end_to_end tests/cslm tests/components tests/benchmarks)

lint: setup  ## ruff, mypy, import directions, YAML, Markdown
	@$(ORCHESTRATOR) -m ruff check . && $(ORCHESTRATOR) -m ruff format --check .
	@$(COMPONENTS) -m mypy
	@.venv/orchestrator/bin/lint-imports --no-logo
	@git ls-files -z --cached --others --exclude-standard '*.yaml' '*.yml' '*.dvc' | xargs -0 .venv/orchestrator/bin/yamllint --strict
	@git ls-files -z --cached --others --exclude-standard '*.md' | xargs -0 -r .venv/orchestrator/bin/pymarkdown --config .pymarkdown.json scan

clean:  ## Remove all run-time state (asks first)
	@infra/clean.sh
