# `make demo` and `make test` are all that a newcomer needs; each installs what it lacks into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRITON_VENV := .venv-triton
CLIENTS_VENV := .venv-clients
# A process a core; the tests of a file stay together, as they share what is slow to make, and the files stay in the order of
# tests/conftest.py.
IN_PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-quick test-gpu check format bench bench-peers clean
help:
	@echo "make demo        export, quantize, verify and rank with the embedded model"
	@echo "make test        every test"
	@echo "make test-quick  every test but the slow ones"
	@echo "make test-gpu    what only a GPU can show"
	@echo "make check       format, lint (Dockerfiles too), types, import floors"
	@echo "make format      rewrite the source in its format"
	@echo "make bench       compare with sentence-transformers; cold start and memory"
	@echo "make bench-peers every variant beside every peer, in turns (installs them the first time)"

demo: $(VENV)/.demo-installed
	$(BIN)/crossforge demo

test: $(VENV)/.dev-installed $(TRITON_VENV)/.installed $(CLIENTS_VENV)/.installed
	$(BIN)/pytest $(IN_PARALLEL)

test-quick: $(VENV)/.dev-installed
	$(BIN)/pytest $(IN_PARALLEL) -m "not slow"

test-gpu: $(VENV)/.dev-installed
	$(BIN)/pytest -m gpu

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint examples/deploy/docker/Dockerfile.*

format: $(VENV)/.dev-installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/cold_start.py

bench-peers: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/peers.py --plot docs/img/peers.png

# torch goes first and by its exact version, so that nothing else chooses a build of it.
$(VENV)/.demo-installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "crossforge needs Python 3.11 or later: make PYTHON=python3.11 ..."; exit 3; }
	@echo "Installing into $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e ".[cpu,export,demo]"
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.demo-installed
	@echo "Installing the test tools into $(VENV)"
	@$(PIP) -e ".[dev]"
	@touch $@

# The Triton server that one test asks, apart from everything else. There is no wheel of it for every machine: where it cannot be
# had, that test skips and says so.
$(TRITON_VENV)/.installed: tests/triton_requirements.txt
	@echo "Installing a Triton server into $(TRITON_VENV)"
	-@$(PYTHON) -m venv $(TRITON_VENV) && \
		$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps -r $< -e . && \
		touch $@

# The frameworks whose rerank classes one test lets talk to the service. Where they cannot be had, that test skips and says so.
$(CLIENTS_VENV)/.installed: tests/clients_requirements.txt
	@echo "Installing rerank clients into $(CLIENTS_VENV)"
	-@$(PYTHON) -m venv $(CLIENTS_VENV) && \
		$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $< && \
		touch $@

clean:
	rm -rf $(VENV) $(TRITON_VENV) $(CLIENTS_VENV) demo-bundle build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
