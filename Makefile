# Two commands are enough: `make demo` shows a region die without a lost cent, `make test` passes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= .cellpay
STAMP := $(VENV)/.installed
# protoc's, because google/api comes from a Python package and not from buf's registry.
DESCRIPTORS := gen/cellpay/descriptors.binpb

.PHONY: default demo test quick lint types layers protos openapi reference up down status verify bench bench-quick profile xds-push policy-push overload choice-sim choice-decide trace-bench iso8583 reconcile-bench terraform drills clean install

default: lint types layers quick

$(STAMP): pyproject.toml hatch_build.py $(wildcard protos/cellpay/*/v1/*.proto) protos/build_stubs.py
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python protos/build_stubs.py
	@touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)  ## three cells, real purchases, one region killed, the books audited
	@$(BIN)/cellctl demo

test: $(STAMP) terraform lint types layers  ## everything, on real components
	@$(BIN)/python -m pytest

quick: $(STAMP)  ## unit and property tests only
	@$(BIN)/python -m pytest tests/unit tests/property

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@cd protos && ../$(BIN)/buf lint $(DESCRIPTORS) --path cellpay --config buf.yaml
	@cd protos && ../$(BIN)/buf breaking $(DESCRIPTORS) --path cellpay --exclude-imports --config buf.yaml --against released.binpb

types: $(STAMP)
	@$(BIN)/mypy

layers: $(STAMP)
	@$(BIN)/lint-imports

protos: $(STAMP)
	@$(BIN)/python protos/build_stubs.py --force

openapi: $(STAMP)  ## the HTTP edge's document, from the protos → docs/openapi.json
	@$(BIN)/python -m router.edge.openapi > docs/openapi.json

reference: $(STAMP)  ## calls, errors, settings, commands and metrics, from the source → docs/reference/
	@$(BIN)/python -m control.cellctl.reference

up: $(STAMP)  ## a mesh of three cells, until Ctrl-C
	@$(BIN)/cellctl up --cells 3 --data $(DATA)

down: $(STAMP)
	@$(BIN)/cellctl down --data $(DATA)

status: $(STAMP)
	@$(BIN)/cellctl status --data $(DATA)

verify: $(STAMP)
	@$(BIN)/cellctl verify --data $(DATA)

bench: $(STAMP)  ## figures of one run on this machine → bench/results/latest.json
	@$(BIN)/python -m tests.bench.run

bench-quick: $(STAMP)  ## the same in less than a minute → bench/results/quick.json
	@$(BIN)/python -m tests.bench.run --quick

profile: $(STAMP)  ## where each microsecond of a payment goes → docs/performance.md
	@$(BIN)/python -m tests.bench.where

xds-push: $(STAMP)  ## a push to thousands of simulated subscribers → bench/results/xds_push.json
	@$(BIN)/python -m tests.bench.xds_push

policy-push: $(STAMP)  ## a policy to 1,000 subscribers and 1,000 processes → bench/results/policy_push.json
	@$(BIN)/python -m tests.bench.policy_push

overload: $(STAMP)  ## three times what a cell can do, with policies and without → bench/results/overload.json
	@$(BIN)/python -m tests.bench.overload

choice-sim: $(STAMP)  ## a day of charges with outages, under five ways to choose a bank → docs/choice-day.png
	@$(BIN)/python -m tests.bench.choice_sim

choice-decide: $(STAMP)  ## what one choice of a bank takes → bench/results/choice_decide.json
	@$(BIN)/python -m tests.bench.choice_decide

trace-bench: $(STAMP)  ## unary payments with traces and without, side by side → bench/results/tracing.json
	@$(BIN)/python -m tests.bench.tracing

iso8583: $(STAMP)  ## ISO 8583 messages a second through one connection and one core → bench/results/iso8583.json
	@$(BIN)/python -m tests.bench.iso8583

reconcile-bench: $(STAMP)  ## ten million attempts against ten million lines → bench/results/reconcile.json
	@$(BIN)/python -m tests.bench.reconcile

TERRAFORM_STAMP := .venv-terraform/.installed

$(TERRAFORM_STAMP): terraform/install.py $(wildcard protos/cellpay/control/v1/*.proto)
	@$(PYTHON) terraform/install.py .venv-terraform
	@touch $@

terraform: $(TERRAFORM_STAMP)  ## the provider, installed locally: export TF_CLI_CONFIG_FILE=$$PWD/.venv-terraform/terraform.rc

drills: $(STAMP) terraform  ## every drill of terraform/drills on a mesh of its own → drills-reports/
	@$(BIN)/python terraform/run_drills.py

clean:
	rm -rf $(VENV) .venv-terraform protos/gen .mypy_cache .ruff_cache .hypothesis
