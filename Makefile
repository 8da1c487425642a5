# Two commands, each from nothing: `make demo` and `make test`. PYTHON picks the interpreter (3.10 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint clean

help:
	@echo "make demo   sets up $(VENV), then calibrates, builds, evaluates and times the packaged model (about 2 minutes)"
	@echo "make test   sets up $(VENV) with the test tools, then runs the tests"
	@echo "make lint   ruff, mypy and the import contracts"
	@echo "make clean  removes $(VENV) and what tools left behind"

demo: $(VENV)/.demo
	@echo "== quantkit run: calibrate, build FP32 / half / INT8, evaluate 1,067 sentences, time them"
	@$(BIN)/quantkit run demo --out quantkit-out

test: $(VENV)/.test
	@echo "== tests"
	@$(BIN)/python -m pytest -q -n 2

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); set PYTHON=/path/to/python3 (3.10 or newer)."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is older than 3.10; set PYTHON=/path/to/a/newer/python3."; exit 2; }
	@echo "== a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; install its venv module (Debian: python3-venv)."; exit 2; }
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml calib_data/requirements-demo.txt
	@echo "== quantkit and what it needs, into $(VENV) (some minutes when nothing is cached)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e . 2>$(VENV)/pip.log \
		&& $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r calib_data/requirements-demo.txt 2>>$(VENV)/pip.log \
		|| { tail -n 5 $(VENV)/pip.log; echo "make: the packages could not be installed; the lines above are pip's, the rest is in $(VENV)/pip.log."; exit 2; }
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "== the test tools, into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' 2>$(VENV)/pip.log \
		|| { tail -n 5 $(VENV)/pip.log; echo "make: the test tools could not be installed; the lines above are pip's, the rest is in $(VENV)/pip.log."; exit 2; }
	@touch $@

clean:
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
