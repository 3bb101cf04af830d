# One machine, nothing to set up: `make sweep`, then `make ui`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NAME   ?= laptop
PORT   ?= 5000
URI    ?=
ARGS   ?=
ONE    := $(if $(filter file,$(origin NAME)),,--name "$(NAME)")
export MLFLOW_DISABLE_TELEMETRY ?= true

# The laptop-sized choice of options of sweeps/svhn.py.
LAPTOP := --data house-numbers --width 0.25 --levels 2 --sigma sigmoid --batch-size 32 --epochs 10 --draws 2 \
          --num-trials 3 --race 3 --startup-trials 2

.PHONY: help sweep ui report dashboard best test test-fast test-long test-numerics test-versions testbed faults lint bench gpu clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

define install
	@PYTHON=$(PYTHON) bash cluster/install.sh $(VENV) "$(1)"
	@touch $@
endef

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(call install,.)

$(VENV)/installed-test: $(VENV)/installed
	$(call install,.[test])

$(VENV)/installed-dashboard: $(VENV)/installed
	$(call install,.[dashboard])

sweep: $(VENV)/installed  ## a laptop-sized sweep on the embedded data (NAME=…, ARGS=--resume)
	@$(BIN)/python sweeps/svhn.py --name "$(NAME)" $(LAPTOP) $(ARGS)

ui: $(VENV)/installed  ## the MLflow UI, and the link that opens each sweep in it (NAME=…, PORT=…, URI=…)
	@$(BIN)/python sweeps/ui.py $(if $(URI),--tracking-uri "$(URI)") --port $(PORT) $(ONE)

report: $(VENV)/installed  ## the tables of a finished or running sweep, or a page (NAME=…, ARGS="--html report.html")
	@$(BIN)/python sweeps/report.py --name "$(NAME)" $(ARGS)

dashboard: $(VENV)/installed-dashboard  ## the sweep in Optuna's dashboard, at http://127.0.0.1:8080 (NAME=…, ARGS="--port 8081")
	@$(BIN)/python sweeps/dashboard.py --name "$(NAME)" $(ARGS)

best: $(VENV)/installed  ## trains the best trial of a sweep in full and tests it (NAME=…, ARGS="--epochs 50")
	@$(BIN)/python sweeps/best.py --name "$(NAME)" $(ARGS)

lint: $(VENV)/installed-test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two files at a time; one thread each, since several pools of threads on two cores slow all of them.
TWO := -n 2 --dist loadfile

test: lint  ## lint, types and the tests but test-long's (15 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m "not long" $(ARGS)

test-long: $(VENV)/installed-test  ## the rest: buckets, PostgreSQL, full training over two workers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m long $(ARGS)

test-fast: $(VENV)/installed-test  ## the tests for daily work: none that is slow or starts a sweep (2 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m "not slow and not integration" $(ARGS)

test-versions: $(VENV)/installed-test  ## search, sweeps, storage, tracking at both ends of pyproject.toml's ranges (ARGS=lowest)
	@$(BIN)/python tests/versions.py $(ARGS)

# By the processor OpenBLAS picks its kernels, which round differently: here the two that most have.
test-numerics: $(VENV)/installed-test  ## the tests where rounding matters, under two of OpenBLAS's kernels
	@for kernels in Haswell SkylakeX; do \
		if [ $$kernels = SkylakeX ] && ! grep -q avx512f /proc/cpuinfo; then \
			echo "numerics, SkylakeX: skipped, this processor has no avx512f"; continue; \
		fi; \
		echo "numerics, $$kernels"; \
		OPENBLAS_CORETYPE=$$kernels OMP_NUM_THREADS=1 \
			$(BIN)/python -m pytest $(TWO) -m numerics $(ARGS) || exit 1; \
	done

testbed: $(VENV)/installed-test  ## a sweep over three hosts played by this machine, as root (ARGS=--kill-host)
	@$(BIN)/python tests/testbed/testbed.py $(ARGS)

faults: $(VENV)/installed-test  ## sweeps under 24 faults and what they lose, as root (ARGS="--only 1 6 10")
	@$(BIN)/python -m tests.faults $(ARGS)

bench: $(VENV)/installed  ## the benchmarks
	for name in step trials evaluation memory sweep driver logging_cost; do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/mixture.py --seeds 1

gpu: $(VENV)/installed-test  ## all that a GPU must answer, in nine minutes, into runs/gpu (ARGS="--only step waits")
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

clean:  ## removes the virtual environment and caches; runs/ stays
	rm -rf $(VENV) $(VENV).lock .pytest_cache .mypy_cache .ruff_cache *.egg-info build
