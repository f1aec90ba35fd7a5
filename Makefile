# Everything a person types here: make quickstart, make test. The rest is for people who change the project.
#   GPU=1          train on this machine's GPUs, one rank each (default: the CPU)
#   TORCH_INDEX=…  take torch from another wheel index (for example PyTorch's own for CPU or another CUDA)
#   PYTHON=…       the Python that makes .venv (3.11 or newer)
PYTHON ?= python3
TORCH_INDEX ?=
GPU ?=
# What make bench is told: --list, --full, --only NAME …, --compare FILE (docs/benchmarks.md).
BENCH ?=
# Test files that run side by side.
TEST_WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

ifneq ($(shell uname -s),Linux)
$(error DeepSpeed needs Linux: run this in WSL 2 (Windows) or in a Debian or Ubuntu container, for example `docker run -it -v "$$PWD":/project -w /project debian:12`)
endif

.PHONY: help quickstart test soak cluster bench lint clean
help:
	@echo "make quickstart   sample catalogue → shards → training → scores → export → answer → runs/quickstart/report.html"
	@echo "make test         the tests;  make soak: the same with large counts"
	@echo "make bench        what this machine can measure, beside what people would use instead → benchmarks.json, .md, .svg"
	@echo "make lint         ruff, mypy, import-linter, shellcheck"

# A stamp beside the packages says that an installation was finished; a half-made .venv is made anew.
.venv/installed-train: pyproject.toml constraints.txt
	@echo "Installing into .venv (a few minutes, once) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv \
		|| { echo "error: $(PYTHON) cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) --editable '.[train]'
	@touch $@

.venv/installed-dev: .venv/installed-train
	@$(PIP) --editable '.[train,dev]'
	@touch $@

quickstart: .venv/installed-train
	@GPU=$(GPU) $(BIN)/python -m train.quickstart

test: .venv/installed-dev
	@$(BIN)/python -m pytest -m "not cluster" -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

soak: .venv/installed-dev
	@$(BIN)/python -m pytest -m "soak or not soak"

# Needs root and the packages that .ci/run installs: ssh to this machine, pdsh, Slurm.
cluster: .venv/installed-dev
	@$(BIN)/python -m pytest -m cluster

bench: .venv/installed-dev
	@$(BIN)/python -m tests.benchmarks.bench $(BENCH)

lint: .venv/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@git ls-files -z '*.sh' '*.sbatch' '.ci/run' 'launch/submit' 'launch/status' 'launch/site.env' | xargs -0 --no-run-if-empty $(BIN)/shellcheck

clean:
	rm -rf .venv runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
