# Every target works in a fresh checkout: it makes .venv first when it is missing or out of date.
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# no network in tests, and one thread a worker: two workers would otherwise fight over the cores
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# where this is set, each of the many processes that the tests start would compile every module anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo lint test test-slow format docs clean

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/mmkd demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -n 2 --dist worksteal -m 'not slow'

test-slow: $(STAMP)
	$(PYTEST) -m slow

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mkdocs --strict: a broken link is an error
docs: $(STAMP)
	@"$$(command -v uv || echo $(BIN)/uv)" pip install --quiet --python $(BIN)/python -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf site $(VENV) .mypy_cache .ruff_cache .import_linter_cache

# One resolver call for everything: torch and torchvision must be builds of each other.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "mmkd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
	  uv=uv; \
	  [ -x $(BIN)/python ] || uv venv --python "$(PYTHON)" $(VENV); \
	else \
	  uv=$(BIN)/uv; \
	  [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	  [ -x $(BIN)/pip ] || [ -x $(BIN)/uv ] || $(BIN)/python -m ensurepip; \
	  [ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet uv; \
	fi; \
	"$$uv" pip install --python $(BIN)/python -e '.[test]'
	@touch $@
