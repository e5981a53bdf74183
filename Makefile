.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
DATA ?= mnist
RUN ?= runs
SWEEP ?= sweeps/mlp_optimizer_lr_init.yaml
OVERRIDES ?=
BENCH ?=
unexport PYTHONDONTWRITEBYTECODE  # compiling the imports anew costs every process two seconds

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

# everything is pinned by requirements.lock, whatever extras are asked for
.venv/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[dev]'
	@touch $@

install: .venv/.installed  ## set up .venv

train: install  ## the main job on the embedded digits; OVERRIDES="model=vgg16 optim=adam"
	$(BIN)/python run.py $(OVERRIDES)

test: install  ## lint, types and tests
	@$(MAKE) --no-print-directory --jobs 2 lint quick-tests

# three processes: a test that waits for a process, a queue or a server leaves its core to another
quick-tests: install
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist worksteal

test-all: install lint  ## the slower, fuller checks too
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-versions: install  ## the core tests on each Python here, with the oldest and the newest JAX
	$(BIN)/python tests/versions.py

lint: install  ## ruff, mypy, and that imports point one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sweep: install  ## search SWEEP=sweeps/mlp_optimizer_lr_init.yaml with two workers
	$(BIN)/python sweep.py $(SWEEP) workers=2 $(OVERRIDES)

bench: install  ## this project beside PyTorch and others, here; BENCH="--only lenet5_step,help"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[dev,bench]'
	$(BIN)/python -m benchmarks $(BENCH)

report: install  ## compare the runs below RUN=runs
	$(BIN)/python report.py $(RUN)

dashboard: install  ## review RUN offline: a study in the browser, a run in the terminal, others as a table
	@if [ -f $(RUN)/journal.log ]; then \
	  $(BIN)/python report.py $(RUN) && $(BIN)/optuna-dashboard $(RUN)/journal.log; \
	elif [ -d $(RUN)/wandb ]; then $(BIN)/wandb leet $(RUN)/wandb; \
	else $(BIN)/python report.py $(RUN); fi

docs: install  ## the site, in build/docs; warnings are errors
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[dev,docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

labbook: install  ## measure every claim of the lab book anew, into docs/labbook
	$(BIN)/python -m experiments.lessons.labbook docs/labbook

data: install  ## download and prepare DATA=mnist (needs a network and the extra `prepare`)
	$(BIN)/python -m experiments.cli.prepare $(DATA)

clean:  ## remove what was built, but no runs
	rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help install train test quick-tests test-all test-versions lint format sweep bench report dashboard docs labbook data clean
