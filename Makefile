# Every target sets up what it needs: a machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two OpenMP threads that spin starve each other beside any busy process.
export OMP_WAIT_POLICY := passive

.PHONY: demo test test-all venv lint bench metaworld reproduce clean

demo: venv
	rm -rf demo-out
	$(BIN)/valence demo --out demo-out

# A process a core, one thread each: together they are faster than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: venv
	$(PYTEST) -m "not slow"

# With the tests that run an experiment or start a server.
test-all: venv
	$(PYTEST)

# One of the papers' experiments: make reproduce NAME=dro, or NAME="dro --quick".
reproduce: venv
	$(BIN)/python -m experiments $(NAME)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

# Half an hour: rewrites docs/results/performance. Nothing else should run beside it.
bench: .venv-bench/.installed
	.venv-bench/bin/python benchmarks/head.py --keep
	.venv-bench/bin/python benchmarks/step.py --keep
	.venv-bench/bin/python benchmarks/growth.py --keep
	.venv-bench/bin/python benchmarks/report.py

# Peers in an environment of their own, so that nothing else comes to need them.
.venv-bench/.installed: pyproject.toml constraints.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[language,bench]'
	touch $@

venv: $(STAMP)

# torch first and by its exact pin: that one is the CPU build, any other way pulls gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Valence needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# The simulator of `python -m experiments offline-control`, in an environment of its own: it wants another mujoco.
metaworld: .venv-metaworld/.installed

.venv-metaworld/.installed: experiments/offline_control/metaworld.txt
	$(PYTHON) -m venv .venv-metaworld
	.venv-metaworld/bin/python -m pip install --quiet --disable-pip-version-check -r experiments/offline_control/metaworld.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-metaworld .venv-bench demo-out runs
