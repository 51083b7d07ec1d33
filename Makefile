# Everything sets itself up: nothing is needed but Python 3.11 or newer with its venv module.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DAGSTER_HOME := $(CURDIR)/.dagster
DATA_ROOT ?= data
APT := $(if $(filter 0,$(shell id -u)),,sudo -n )apt-get -o DPkg::Lock::Timeout=300

.PHONY: demo test test-scale test-ui faults check ui bench docs format clean help

help:  ## Show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: $(VENV)/installed $(DAGSTER_HOME)/dagster.yaml  ## Synthetic candles into an embedded ClickHouse, exported and sealed
	@DAGSTER_HOME=$(DAGSTER_HOME) $(BIN)/lake demo --data-root $(DATA_ROOT)

test: $(VENV)/installed  ## All tests
	$(BIN)/python -m pytest -n auto -q

test-scale: $(VENV)/installed  ## Real daemons, Postgres (Debian's package), runs at the same time, and the files in deploy/
	command -v initdb || ls /usr/lib/postgresql/*/bin/initdb || apt-get install --yes postgresql
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[embedded,postgres,kubernetes]'
	$(BIN)/python -m pytest -q lake_pipeline_tests/deployment

faults: $(VENV)/installed  ## Kill, fail and tamper at every step of an export; ends with one line of counts
	$(BIN)/python -m lake_pipeline_tests.faults

check: $(VENV)/installed  ## Lint, types, import boundaries
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

PORT ?= 3000
ui: $(VENV)/installed $(DAGSTER_HOME)/dagster.yaml  ## Dagster's UI on localhost:3000, or on PORT
	@echo 'Dagster will be on http://localhost:$(PORT) in some seconds; Ctrl-C ends it.'
	@echo 'What it says of dagster.yaml may be ignored: $(DAGSTER_HOME) has that very file.'
	@DAGSTER_HOME=$(DAGSTER_HOME) LAKE_DATA_ROOT=$(abspath $(DATA_ROOT)) PYTHONWARNINGS=ignore \
		$(BIN)/dagster dev --port $(PORT)

test-ui: $(VENV)/installed-ui  ## The UI in a real browser; screenshots in .screenshots, or in SCREENSHOTS
	$(BIN)/python -m pytest -q -n 0 lake_pipeline_tests/ui/browser.py

SCALE ?= small
ROUNDS ?= 3
bench: $(VENV)/installed  ## Export, backtest and optimizer against what one would type instead; SCALE=full is 60 M candles
	$(BIN)/python benchmarks/export.py --scale $(SCALE) --rounds $(ROUNDS) $(DATA_ROOT)/bench
	$(BIN)/python benchmarks/backtest.py --scale $(SCALE) --rounds $(ROUNDS) $(DATA_ROOT)/bench/$(SCALE)
	$(BIN)/python benchmarks/optimizer.py --scale $(SCALE) --rounds $(ROUNDS) $(DATA_ROOT)/bench/$(SCALE)

docs: $(VENV)/installed  ## The documentation as a site, in site/; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'open site/index.html'

format: $(VENV)/installed  ## Apply the formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and Dagster's state; data stays
	rm -rf $(VENV) $(DAGSTER_HOME)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ...'; exit 1; }
	@echo 'Setting up $(VENV): a minute or two, once'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[embedded]' --group dev
	@touch $@

$(VENV)/installed-ui: $(VENV)/installed
	@command -v chromium chromium-browser google-chrome > /dev/null || $(APT) install -y --no-install-recommends chromium
	$(BIN)/python -m pip install --quiet -c constraints.txt --group ui
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: dagster.yaml
	@mkdir -p $(DAGSTER_HOME)
	@ln -sf ../dagster.yaml $@
