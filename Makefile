# Everything is one command; `make` lists them. Each says what it does and how long it took.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
STEP   := hack/step.sh
# Threads that wait must not spin: training beside anything else would take many times as long.
export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.PHONY: help venv demo compare test chaos lint generate images kind-up kind-down

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY) ## The virtual environment .venv (3 minutes the first time)
$(READY): pyproject.toml
	@test -x $(BIN)/python || $(STEP) "virtual environment in $(VENV), of $$($(PYTHON) --version)" $(PYTHON) -m venv $(VENV)
	@$(STEP) "installing the project and what it needs (the first time 3 minutes)" \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[operator,trainer,dev]'
	@touch $@

demo: venv ## Fine-tunes the example subject on this machine, without a cluster (3 minutes on 2 cores)
	@$(STEP) "LoRA on the pictures of examples/subjects" $(BIN)/finetune run examples/local.yaml

compare: venv ## The four techniques on the same pictures, over five training seeds (2 hours; goes on where it stopped)
	@$(STEP) "four techniques, five seeds" $(BIN)/finetune compare examples/compare.yaml --out runs/compare

test: venv ## All tests; those that need Docker are skipped without it (1 hour). KEEP=1 keeps the cluster
	@$(STEP) "all tests" $(BIN)/python -m pytest

chaos: venv ## The operator in 1000 schedules of faults (4 minutes). SCHEDULES=20000 SEED=123 (the first) choose others
	@$(STEP) "schedules of faults" env FINETUNE_CHAOS_SCHEDULES=$(SCHEDULES) FINETUNE_CHAOS_SEED=$(SEED) \
	  $(BIN)/python -m pytest tests/chaos --timeout=0

lint: venv ## ruff and mypy (1 minute)
	@$(STEP) "ruff" $(BIN)/ruff check .
	@$(STEP) "mypy" $(BIN)/mypy

generate: venv ## CRDs, the admission policy and the field reference, from api/ (2 seconds)
	@$(STEP) "crds/ and charts/finetune-operator/templates/crds/" $(BIN)/python -m finetune_api.crd
	@$(STEP) "charts/finetune-operator/templates/admission.yaml" $(BIN)/python -m finetune_api.admission
	@$(STEP) "field reference" $(BIN)/python -m finetune_api.reference

images: venv ## The operator's and the trainer's images (2 minutes the first time)
	@hack/images.sh

kind-up: venv ## A kind cluster with images, S3 server, Prometheus and operator (4 minutes the first time)
	@hack/kind/up.sh

kind-down: ## Deletes the kind cluster (5 seconds)
	@hack/kind/down.sh
