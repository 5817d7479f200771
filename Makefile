# The verbs of this repository. `make help` lists them; each installs what it needs into .venv first.

PYTHON ?= python3
WORKERS ?= 2
BENCHMARKS ?= $(filter-out benchmarks/__init__.py benchmarks/harness.py benchmarks/kernel_times.py benchmarks/writers.py,$(wildcard benchmarks/*.py))

BIN := .venv/bin
INSTALLED := .venv/.installed
PINS := pyproject.toml constraints.txt $(filter %.cpp %.hpp %.inc %CMakeLists.txt,$(wildcard native/*))

.DEFAULT_GOAL := help
.PHONY: help write test check fix bench docs clean
.NOTPARALLEL:

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

# BOOK goes to the shell in single quotes, as it was typed, so spaces, quotes and dollars survive. A leading ~ that
# the calling shell left alone (only some expand it after `BOOK=`) becomes the home directory here.
write: $(INSTALLED)-run ## read a book and write what comes next: BOOK=path (default: the bundled story) ARGS=options
	@book='$(subst ','\'',$(value BOOK))'; \
	case "$$book" in '~/'*) book="$$HOME/$${book#??}";; esac; \
	$(BIN)/epilogue write $${book:+"$$book"} $(ARGS)

test: $(INSTALLED)-test ## run the tests that need no accelerator: ARGS=pytest's options, WORKERS=2
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(INSTALLED)-dev ## format, lint, types, the direction of imports, house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_house_rules.py

fix: $(INSTALLED)-dev ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)-test ## run every benchmark, or BENCHMARKS='benchmarks/NAME.py ...'
	@for module in $(subst /,.,$(basename $(BENCHMARKS))); do \
		echo "== $$module"; $(BIN)/python -m "$$module" $(ARGS) || exit 1; \
	done

docs: $(INSTALLED)-run ## write docs/cli.md anew from the commands' --help
	$(BIN)/python docs/generate_cli.py

clean: ## remove caches and builds; .venv, runs/ and shards/ stay
	rm -rf build dist src/*.egg-info native/CMakeFiles native/CMakeCache.txt .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that `python -m venv` puts in place, so its presence says that the step came to its end.
$(BIN)/pip:
	@version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=missing; \
	case "$$version" in missing | 2.* | 3.? | 3.10) \
		echo "epilogue needs Python 3.11 or newer and $(PYTHON) is $$version: name another, as in 'make PYTHON=python3.12 write'." >&2; \
		exit 1;; esac; \
	echo "Making .venv with Python $$version ..."
	@rm -f $(INSTALLED)-*
	@"$(PYTHON)" -m venv .venv

define install
	@echo "Installing epilogue$(1) into .venv; the first time this fetches PyTorch and takes a minute or more ..."
	@$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt -e '.$(1)'
endef

$(INSTALLED)-run: $(PINS) | $(BIN)/pip
	$(call install,)
	@touch $(INSTALLED)-run

$(INSTALLED)-test: $(PINS) | $(BIN)/pip
	$(call install,[test])
	@touch $(INSTALLED)-run $(INSTALLED)-test

# dev asks for test itself (pyproject.toml).
$(INSTALLED)-dev: $(PINS) | $(BIN)/pip
	$(call install,[dev])
	@touch $(INSTALLED)-run $(INSTALLED)-test $(INSTALLED)-dev
