# make demo and make test set up their own environment in .venv, on a Python found by
# scripts/find_python.sh or named: make PYTHON=/path/to/python3.13 test

PYTHON ?=
BIN := .venv/bin
BUILD := pyproject.toml hatch_build.py scripts/fork.py $(shell find patches -name '*.patch')

.PHONY: help demo test slow lint docs bench series prove clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    raw order-book events to a posterior: in memory and streamed, side by side"
	@echo "make test    the test suite"
	@echo "make slow    the tests that take minutes"
	@echo "make lint    ruff, mypy, yaml and toml checks, and whether patches/ is what pymc/ holds"
	@echo "make docs    the documentation, into docs/build/html: runs the notebooks"
	@echo "make bench   speed and memory in one table, in under 10 minutes (ARGS=--help tells more)"
	@echo "make series  the change as a git am series, into series/"
	@echo "make prove   apply that series to the upstream release and run its tests there"
	@echo "make clean   remove the environment and what was built"

demo: .venv/.demo
	$(BIN)/python -m examples.order_book demo $(ARGS)

test: .venv/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

slow: .venv/.test
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: .venv/.dev
	$(BIN)/pre-commit run --all-files

docs: .venv/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs/source docs/build/html

bench: .venv/.test
	$(BIN)/python -m benchmarks $(ARGS)

series: .venv/.test
	rm -rf series
	$(BIN)/python scripts/fork.py export series

prove: .venv/.test
	$(BIN)/python scripts/fork.py prove

# One environment: each stamp adds the dependencies of one extra, with uv where there is one.
.venv/.%: .venv/.python $(BUILD)
	@if command -v uv >/dev/null; then \
		uv pip install --quiet --python $(BIN)/python --reinstall-package pymc -e ".[$*]"; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"; \
	fi
	@touch $@

# An environment that stands there already is used as it is.
.venv/.python:
	@if [ -x $(BIN)/python ]; then touch $@; exit 0; fi; \
	python="$(PYTHON)"; \
	if [ -z "$$python" ]; then python=$$(scripts/find_python.sh $(MAKECMDGOALS)) || exit 1; fi; \
	"$$python" -c 'import sys; assert (3, 12) <= sys.version_info[:2] <= (3, 14), sys.version' \
		|| { echo "$$python cannot be used: PyMC 6 needs Python 3.12 to 3.14." >&2; exit 1; }; \
	echo "Setting up .venv with $$python"; \
	"$$python" -m venv --clear .venv && touch $@

clean:
	rm -rf .venv docs/build series
