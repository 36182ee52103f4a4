# Everything a person types. `make demo` and `make test` set up by themselves; nothing else is needed beyond python3 and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DIGITS := var/environments/digits
# Programs that come from the operating system, and the Debian packages that hold them.
NEEDED := bwrap:bubblewrap setpriv:util-linux
TESTED := ip:iproute2 /usr/sbin/nft:nftables cc:gcc promtool:prometheus \
          prometheus-alertmanager:prometheus-alertmanager systemd-analyze:systemd
PIP    := --disable-pip-version-check --quiet

# Two runs of pytest beside each other, each with servers of its own; the first one's words come last.
beside = mkdir -p var; $(BIN)/pytest $(1) > var/beside.log 2>&1 & first=$$!; trap "kill $$first" INT TERM; \
	$(BIN)/pytest $(2); rest=$$?; wait $$first; told=$$?; cat var/beside.log; exit $$((rest | told))

.PHONY: help setup tested demo test check lint bench bench-peers up clean

help:            ## What there is to type.
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready $(DIGITS)/.ready  ## Virtual environments with the locked packages, and system programs.

demo: setup      ## The whole story on real parts, to its end.
	$(BIN)/python -m examples.demo

up: setup        ## The hub on this machine, until Ctrl-C.
	$(BIN)/hub up

test: setup tested lint ## Every test; those of the money, which need the database alone, beside the others.
	@$(call beside,tests/ledger tests/vouchers,--ignore=tests/ledger --ignore=tests/vouchers)

check: setup tested lint ## The fast part of the tests, on two cores.
	@$(call beside,-m "not slow" tests/compute_hub,-m "not slow" --ignore=tests/compute_hub)

tested:
	sh deploy/system-packages $(PYTHON) $(TESTED)

lint: setup      ## Style, types and the direction of imports.
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup     ## The ledger's speed against pgbench; other benchmarks are named in benchmarks/README.md.
	$(BIN)/python -m benchmarks.ledger --json

bench-peers: setup ## What benchmarks.throughput compares with: Slurm and Ray's Jobs API.
	sh deploy/bench-peers $(BIN)/python var/bench/peers

clean:           ## Remove what setup and runs have made.
	rm -rf $(VENV) var

$(VENV)/.ready: requirements/hub.lock pyproject.toml deploy/system-packages
	sh deploy/system-packages $(PYTHON) $(NEEDED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP) --require-hashes -r requirements/hub.lock
	$(BIN)/pip install $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(DIGITS)/.ready: requirements/digits.lock | $(VENV)/.ready
	test -x $(DIGITS)/bin/python || $(PYTHON) -m venv $(DIGITS)
	$(DIGITS)/bin/pip install $(PIP) --require-hashes -r requirements/digits.lock
	touch $@
