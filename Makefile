# Two commands are enough: `make demo` shows a region die without a lost cent, `make test` passes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= .cellpay
WORKERS ?= 2
STAMP := $(VENV)/.installed
# protoc's, because google/api comes from a Python package and not from buf's registry.
DESCRIPTORS := gen/cellpay/descriptors.binpb

.PHONY: default demo test quick lint types layers protos openapi reference up down status verify bench bench-quick profile xds-push policy-push overload choice-sim choice-decide trace-bench iso8583 reconcile-bench sign-bench risk-bench risk-features-bench risk-model risk-model-bench flink flink-test terraform drills audit sbom double11 clean install

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

# Most tests wait for others: two at once, each with a mesh of its own. Stories with deaths in them go one by one.
test: $(STAMP) terraform lint types layers  ## everything, on real components
	@$(BIN)/python -m pytest --ignore tests/chaos --numprocesses $(WORKERS) --dist loadfile
	@$(BIN)/python -m pytest tests/chaos

quick: $(STAMP)  ## unit and property tests only
	@$(BIN)/python -m pytest tests/unit tests/property --numprocesses $(WORKERS)

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

sign-bench: $(STAMP)  ## what signatures take of unary Pay's throughput → bench/results/sign.json
	@$(BIN)/python -m tests.bench.sign

overload: $(STAMP)  ## three times what a cell can do, with policies and without → bench/results/overload.json
	@$(BIN)/python -m tests.bench.overload

double11: $(STAMP)  ## a step of twenty times, with a forecast and without → docs/double11.png
	@$(BIN)/python -m tests.bench.double11

choice-sim: $(STAMP)  ## a day of charges with outages, under five ways to choose a bank → docs/choice-day.png
	@$(BIN)/python -m tests.bench.choice_sim

choice-decide: $(STAMP)  ## what one choice of a bank takes → bench/results/choice_decide.json
	@$(BIN)/python -m tests.bench.choice_decide

risk-bench: $(STAMP)  ## what a decision takes, and what risk costs on Pay → bench/results/risk.json
	@$(BIN)/python -m tests.bench.risk

risk-model: $(STAMP)  ## trains the example risk model → examples/risk/model.json, docs/risk-model.md; two minutes
	@$(BIN)/python -m cells.risk.training

risk-model-bench: $(STAMP)  ## what scoring a request takes → bench/results/risk_model.json
	@$(BIN)/python -m tests.bench.risk_model

trace-bench: $(STAMP)  ## unary payments with traces and without, side by side → bench/results/tracing.json
	@$(BIN)/python -m tests.bench.tracing

iso8583: $(STAMP)  ## ISO 8583 messages a second through one connection and one core → bench/results/iso8583.json
	@$(BIN)/python -m tests.bench.iso8583

reconcile-bench: $(STAMP)  ## ten million attempts against ten million lines → bench/results/reconcile.json
	@$(BIN)/python -m tests.bench.reconcile

risk-features-bench: $(STAMP)  ## what reading and counting features costs → bench/results/risk_features.json
	@$(BIN)/python -m tests.bench.risk_features

FLINK_STAMP := .venv-flink/.installed

$(FLINK_STAMP): flink/install.py
	@$(PYTHON) flink/install.py .venv-flink
	@touch $@

flink: $(FLINK_STAMP)  ## PyFlink in an environment of its own, 850 MB; needs Java 11 or 17

flink-test: $(STAMP) flink  ## features as Flink's SQL, run by Flink
	@$(BIN)/python -m pytest tests/unit/test_risk_flink.py

TERRAFORM_STAMP := .venv-terraform/.installed

$(TERRAFORM_STAMP): terraform/install.py $(wildcard protos/cellpay/control/v1/*.proto)
	@$(PYTHON) terraform/install.py .venv-terraform
	@touch $@

terraform: $(TERRAFORM_STAMP)  ## the provider, installed locally: export TF_CLI_CONFIG_FILE=$$PWD/.venv-terraform/terraform.rc

drills: $(STAMP) terraform  ## every drill of terraform/drills on a mesh of its own → drills-reports/
	@$(BIN)/python terraform/run_drills.py

# Apart, so that what is looked at holds nothing of what looks.
AUDIT := .venv-audit
AUDIT_STAMP := $(AUDIT)/.installed

$(AUDIT_STAMP):
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

audit: $(STAMP) $(AUDIT_STAMP)  ## known vulnerabilities of what is installed, by an advisory service, or offline: ADVISORIES=all.zip
	@$(AUDIT)/bin/python deploy/supply/audit.py $(BIN)/python $(if $(ADVISORIES),--advisories $(ADVISORIES))

sbom: $(STAMP) $(AUDIT_STAMP)  ## what is installed, as CycloneDX → sbom.cdx.json
	@$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-format JSON --output-file sbom.cdx.json

clean:
	rm -rf $(VENV) .venv-terraform .venv-audit protos/gen .mypy_cache .ruff_cache .hypothesis
