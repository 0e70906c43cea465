# The two commands: `make train` trains, `make test` tests. Both build the environment in .venv when it is not there.
# Where packages come from is pip's own configuration: its index, proxy and wheel folders are respected.

PYTHON ?= $(shell command -v python3.11 || echo python3)
LOCK ?= cpu
TEST_JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed-$(LOCK)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# A run directory that is still free: runs/NAME, runs/NAME-2, … A run is never removed or written over.
free_run = $(shell n=1; dir=runs/$(1); while [ -e $$dir ]; do n=$$((n + 1)); dir=runs/$(1)-$$n; done; echo $$dir)

.DEFAULT_GOAL := help
.PHONY: help setup train train-movielens monitor test test-all check docs docs-run lock clean

help: ## This list.
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: $(STAMP) ## Build the environment in .venv (LOCK=gpu on a GPU machine).

$(STAMP): requirements/$(LOCK).lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else \
	  f"error: {sys.executable} is Python {sys.version.split()[0]} → 3.11 is needed → make $(MAKECMDGOALS) PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing requirements/$(LOCK).lock into .venv"
ifeq ($(LOCK),gpu)
	@$(PIP) install $$(grep -E '^torch==' requirements/gpu.lock)
endif
	@$(PIP) install --no-deps -r requirements/$(LOCK).lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@echo "compiling the readers' and the tables' inner loops, once a machine"
	@$(BIN)/python -c 'import pipelines.carry, embeddings.cpu_kernels'
	@rm -f .venv/.installed-* && touch $@

train: setup ## The main job: a synthetic log, request rows, two workers, evaluation; into a fresh runs/synthetic*.
	@$(BIN)/tokenformer train --config trainer/configs/synthetic.toml --run-dir $(call free_run,synthetic)

train-movielens: setup ## The main job on MovieLens-1M: make train-movielens ZIP=path/to/ml-1m.zip
	@test -n "$(ZIP)" || { echo 'error: ZIP is not set → it is the original ml-1m.zip → make train-movielens ZIP=path/to/ml-1m.zip'; exit 2; }
	@test -e runs/movielens-data/log || $(BIN)/tokenformer data movielens --zip "$(ZIP)" --out runs/movielens-data/log
	@$(BIN)/tokenformer train --config trainer/configs/movielens.toml --run-dir $(call free_run,movielens)

# A file's tests stay together: they share what they set up.
pytest = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile

monitor: ## Watch runs/: Prometheus with our alerts, Alertmanager and Grafana where they are installed; on loopback.
	@deploy/monitor/monitor.sh

test: setup ## The fast tests: under 12 minutes on 2 cores.
	@$(pytest) -m "not slow"

test-all: setup ## All tests.
	@$(pytest)

check: setup ## Format, lint, types, import contracts.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: setup ## Write the parts of docs/ that the code says: the run file's keys, the metrics' names.
	@$(BIN)/python docs/generate.py

docs-run: setup ## Run the main jobs; put their real output and pictures into README and docs: make docs-run [ZIP=…]
	@$(BIN)/python docs/real_run.py $(if $(ZIP),"$(ZIP)")

lock: ## Write requirements/*.lock anew from requirements/*.in.
	@requirements/lock.sh $(PYTHON)

clean: ## Remove .venv, caches and build leftovers; runs stay.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
