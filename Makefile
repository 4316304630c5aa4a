# Two commands: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
EXIT ?=
# Two OpenMP threads a process are slower than one as soon as both cores are busy.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint clean bench-setup bench-setup-serve

demo: $(VENV)/.ready
	$(BIN)/flts demo $(if $(EXIT),--exit)

test: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; ok = (3, 11) <= v < (3, 13); \
	  sys.exit(None if ok else f"Python 3.11 or 3.12 is needed, found {v}: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable ".[demo,local,test]"
	touch $@

# The libraries that `python -m benchmarks.accuracy` compares with, apart from the project's own.
bench-setup: $(VENV)/.ready $(VENV)-bench/.ready

$(VENV)-bench/.ready: benchmarks/peers/requirements.txt
	test -x $(VENV)-bench/bin/python || $(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# The servers that `python -m benchmarks.serve` compares with.
bench-setup-serve: $(VENV)/.ready $(VENV)-bench-serve/.ready

$(VENV)-bench-serve/.ready: benchmarks/serving/requirements.txt
	test -x $(VENV)-bench-serve/bin/python || $(PYTHON) -m venv $(VENV)-bench-serve
	$(VENV)-bench-serve/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-bench-serve .flts .mypy_cache .ruff_cache .pytest_cache .hypothesis
