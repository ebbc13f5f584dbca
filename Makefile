# Every target sets itself up. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
VERL := .venv-verl
RELEASE := .venv-release
LOWEST := .venv-lowest
NEWEST := build/newest
# nproc takes OMP_NUM_THREADS for the number of cores
CORES ?= $(shell env -u OMP_NUM_THREADS nproc)
WORKERS ?= 2
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
SEED ?= 0
DEMO_OUT ?= outputs/demo
LLM_OUT ?= outputs/llm

# tiny models on few cores: OpenMP barriers cost more than the arithmetic; nothing here may reach for a hub
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# DeepSpeed's kernels are not what is tested
export DS_BUILD_OPS ?= 0
# a worker takes whole files, which make their fixtures once, in the order of tests/conftest.py
BY_FILE := --dist loadfile --no-loadscope-reorder
# tests start many processes, each of which would compile the package
unexport PYTHONDONTWRITEBYTECODE
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.DEFAULT_GOAL := help
.PHONY: help setup demo llm test browser test-verl test-newest test-lowest coverage soak lint format docs figures atlas atlas-figures new-method bench release-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY) ## create .venv and install dgpo with everything the other targets need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dgpo needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,docs,dev]"
	@touch $@

demo: $(READY) ## starter model -> evaluate -> train with DGPO -> evaluate -> summary (SEED=0)
	$(OFFLINE) $(BIN)/dgpo demo --seed $(SEED) --out $(DEMO_OUT)

llm: $(READY) ## a real language model, SmolLM2-135M-Instruct: evaluate -> train with DGPO -> evaluate -> report (SEED=0)
	$(BIN)/python studies/real_model/learn.py --seed $(SEED) --out $(LLM_OUT) $(if $(THREADS),--threads $(THREADS)) $(if $(GSM8K),--gsm8k $(GSM8K))

test: $(READY) ## every test except the soaks, in WORKERS=2 processes of up to 3 GB each
	$(OFFLINE) $(BIN)/python -m pytest -n $(WORKERS) $(BY_FILE) -m "not soak"

browser: ## Chromium for the tests of the report, where this may install it (root, Debian or Ubuntu)
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		(apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium) >/dev/null 2>&1 || \
			echo "browser: apt-get could not install chromium; the tests of the report's page will be skipped"; \
	else \
		echo "browser: no Chromium, and not root with apt-get; the tests of the report's page will be skipped"; \
	fi

test-verl: $(VERL)/.ready ## the plug-ins for verl and SkyRL in those packages themselves, in an environment of their own
	$(OFFLINE) $(VERL)/bin/python -m pytest tests/engines_verl
	$(OFFLINE) $(VERL)/bin/python -m pytest tests/engines_skyrl tests/objectives/test_conformance_frameworks.py

$(VERL)/.ready: pyproject.toml constraints-verl.txt tests/engines_skyrl/requirements.txt
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VERL)/bin/pip install --quiet --disable-pip-version-check -c constraints-verl.txt -e ".[verl]" \
		pytest pytest-timeout hypothesis
	$(VERL)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/engines_skyrl/requirements.txt
	@touch $@

coverage: $(READY) ## `make test` with the lines that it runs, in build/coverage; fails below the floor in pyproject.toml
	$(OFFLINE) $(BIN)/python -m pytest -n $(WORKERS) $(BY_FILE) -m "not soak" --cov --cov-report=term:skip-covered \
		--cov-report=html:build/coverage --cov-report=xml:build/coverage/coverage.xml

# a copy, because the upper bounds in pyproject.toml are what is tested
test-newest: ## `make test` on a copy of the last commit without upper bounds: the newest release of every package
	rm -rf $(NEWEST) && mkdir -p $(NEWEST)
	git archive HEAD | tar -x -C $(NEWEST)
	sed -i.old -E '/^[a-z-]+ = \[/s/(>=[0-9.]+),<[0-9.]+/\1/g' $(NEWEST)/pyproject.toml
	: > $(NEWEST)/constraints.txt
	$(MAKE) -C $(NEWEST) TORCH=torch test

test-lowest: $(LOWEST)/.ready ## the tests of the core with the lowest torch of pyproject.toml and nothing else
	$(OFFLINE) $(LOWEST)/bin/python -m pytest -m "not soak" tests/fused tests/testing tests/objectives \
		$(foreach room,advantages aggregation correction kl loss numerics regions spec tokens,$(wildcard tests/test_$(room).py)) \
		$(foreach page,conformance third_party table,--ignore=tests/objectives/test_$(page).py)

$(LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check "$$(sed -n 's/^dependencies = \["torch>=\([0-9.]*\)"\].*/torch==\1.0/p' pyproject.toml)" \
		numpy -e . pytest pytest-timeout hypothesis
	@touch $@

soak: $(READY) ## the long tests
	$(OFFLINE) $(BIN)/python -m pytest -m soak

lint: $(READY) ## ruff (format and rules) and mypy (strict)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

new-method: $(READY) ## write the two files of a new objective to fill in (NAME=my_method)
	@$(BIN)/python scripts/new_method.py "$(NAME)"

figures: $(READY) ## write what follows from the code: docs/figures/, generated pages and tables of docs/ and README.md, the notebook, vectors, imports
	$(BIN)/python docs/figures/weights.py
	$(BIN)/python docs/figures/hero.py
	$(BIN)/python docs/figures/growth.py
	$(BIN)/python docs/generate_objectives.py
	$(BIN)/python docs/generate_readme.py
	$(BIN)/python docs/generate_doctor.py
	$(BIN)/python docs/generate_notebook.py
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python conformance/generate.py

atlas: $(READY) ## run the staleness atlas (about 2 hours of one core; interrupt and repeat at will), then its figures
	$(BIN)/python studies/atlas/run.py
	$(BIN)/python studies/atlas/run.py --collect
	$(BIN)/python studies/atlas/best_weight.py
	$(MAKE) atlas-figures

atlas-figures: $(READY) ## figures and tables of the atlas from its committed results (minutes)
	$(BIN)/python studies/atlas/collapse.py
	$(BIN)/python studies/atlas/figures.py

docs: figures ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(READY) $(PEERS)/.ready $(VERL)/.ready ## the head and whole updates against their peers, the grader, the atlas's engine (about two hours)
	PYTHONPATH=src $(PEERS)/bin/python -W ignore benchmarks/head.py
	[ $(CORES) = 1 ] || PYTHONPATH=src OMP_PROC_BIND=true OMP_NUM_THREADS=$(CORES) $(PEERS)/bin/python -W ignore \
		benchmarks/head.py --threads $(CORES) --variants naive --no-memory
	$(OFFLINE) $(BIN)/python -W ignore benchmarks/ragged_step.py
	$(OFFLINE) $(BIN)/python -W ignore benchmarks/whole_loop.py
	$(OFFLINE) $(BIN)/python -W ignore benchmarks/profile_step.py
	$(OFFLINE) $(BIN)/python -W ignore benchmarks/growth.py
	$(OFFLINE) $(BIN)/python benchmarks/fused_step.py
	$(OFFLINE) $(BIN)/python benchmarks/trainer_step.py
	$(BIN)/python -W ignore benchmarks/grader.py --out benchmarks/results/grader.json
	$(OFFLINE) $(BIN)/python -W ignore benchmarks/atlas_engine.py
	$(BIN)/python benchmarks/report.py

$(PEERS)/.ready: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps trl==1.16.0 cut-cross-entropy
	@touch $@

release-check: ## build sdist and wheel into dist/, check them, install the wheel in an empty environment and try it (TAG=v0.1.0)
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check build twine
	$(PYTHON) scripts/release_check.py versions $(TAG)
	rm -rf dist
	$(RELEASE)/bin/python -m build
	$(RELEASE)/bin/twine check --strict dist/*
	$(PYTHON) scripts/release_check.py try

clean: ## remove what the targets made
	rm -rf $(VENV) $(PEERS) $(VERL) $(RELEASE) $(LOWEST) outputs docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
