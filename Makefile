# `make demo` shows a training from a web form to a checkpoint; `make test` tests every promise. Both set themselves up.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
COMMA := ,
# PyTorch's CPU build is a tenth of the size: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# What the hosts of a lab run: make gather RELEASES="bookworm trixie"
RELEASES ?= bookworm
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# Files of tests run side by side. The tests of one file share daemons and stay together; files begin in the order of their
# names. Two processors are busy with two files of unit tests, and with three of integration tests, which also wait: for
# processes, time limits, disks. JOBS=… for another number.
BUSY := 2
test-integration: BUSY := 3
AT_ONCE = -n $(or $(JOBS),$(BUSY)) --dist loadfile --no-loadscope-reorder
# Tests start hundreds of processes: they need not compile the same code each time.
unexport PYTHONDONTWRITEBYTECODE
APT := age nftables mariadb-server chromium chromium-driver dataset-fashion-mnist fonts-noto-cjk \
    debootstrap systemd-container iproute2 openssh-client

.PHONY: help demo gather install test test-fast test-integration test-browser test-lab test-long coverage check lint types \
    audit docs diagrams fuzz bench bench-peers system-packages clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

# $(call install,EXTRAS,OPTIONS OF PIP)
define install
@test -n "$(TORCH_INDEX)" -o -e /dev/nvidiactl || \
    echo "No GPU here: PyTorch's CPU build would do, a tenth of the size; docs/tutorial/first-task.md says how."
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
$(PIP) $(2) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
$(BIN)/pip uninstall --quiet --yes fedsim 2> /dev/null  # the distribution's name in 0.1
rm -rf fedsim.egg-info  # also written under that name
$(PIP) $(2) --constraint constraints.txt --editable '.$(1)'
touch $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install)

$(VENV)/.fleet-installed: pyproject.toml constraints.txt
	$(call install,[fleet])

# Compiling all that is installed takes longer than compiling what is imported.
$(VENV)/.tests-installed: pyproject.toml constraints.txt
	$(call install,[test$(COMMA)docs$(COMMA)fleet],--no-compile)
	touch $(VENV)/.installed $(VENV)/.fleet-installed

demo: $(VENV)/.installed  ## a lab of real processes on this machine trains a model from a web form to a checkpoint
	$(BIN)/fedsim demo

gather: $(VENV)/.fleet-installed  ## what lab machines install, gathered in packages/ while there is a network
	$(BIN)/fedsim-gather $(RELEASES:%=--release %) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

test: test-fast test-integration test-browser test-lab  ## every promise once, with few seeds

test-fast: $(VENV)/.tests-installed  ## the unit tests and attacks, in less than two minutes
	$(BIN)/pytest $(AT_ONCE) -m "not long" tests/unit tests/attacks

test-integration: $(VENV)/.tests-installed system-packages  ## with real processes, sockets and databases
	$(BIN)/pytest $(AT_ONCE) -m "not long" tests/integration

test-browser: $(VENV)/.tests-installed system-packages  ## the web's pages in Chromium
	$(BIN)/pytest $(AT_ONCE) -m "not long" tests/browser

test-lab: $(VENV)/.tests-installed system-packages  ## on real hosts, which boot on this machine
	$(BIN)/pytest -m "not long" tests/lab

test-long: $(VENV)/.tests-installed system-packages  ## all seeds, kills and variants, all on hosts; PART=… for one part
	$(BIN)/python tests/tools/long_tier.py $(PART)

# Of the tests on hosts nothing is measured: what they run is installed there.
coverage: $(VENV)/.tests-installed system-packages  ## which lines and branches the tests reach, subprocesses included
	rm -f .coverage .coverage.*
	PYTHONPATH=$(CURDIR)/tests/tools $(BIN)/coverage run -m pytest $(AT_ONCE) -m "not long" tests/unit tests/attacks tests/integration tests/browser
	PYTHONPATH=$(CURDIR)/tests/tools $(BIN)/coverage combine --quiet
	PYTHONPATH=$(CURDIR)/tests/tools $(BIN)/coverage html --quiet --directory build/coverage
	PYTHONPATH=$(CURDIR)/tests/tools $(BIN)/coverage report

install: $(VENV)/.tests-installed system-packages  ## what tests and documentation need

check: $(VENV)/.tests-installed  ## ruff, import-linter, mypy --strict, the documentation
	+$(MAKE) --jobs 2 --output-sync lint types docs

lint: $(VENV)/.tests-installed  ## ruff, import-linter
	$(BIN)/ruff format --check daemons deploy tests docs examples
	$(BIN)/ruff check daemons deploy tests docs examples
	PYTHONPATH=daemons:deploy $(BIN)/lint-imports

types: $(VENV)/.tests-installed  ## mypy --strict
	$(BIN)/mypy

# In an environment of its own: what it needs is not among the pinned versions. It asks PyPI about each of them.
audit:  ## compare the pinned versions with published vulnerabilities; needs the internet
	test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit; }
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

docs: $(VENV)/.tests-installed  ## the documentation, in build/docs/index.html; a warning or a broken link is an error
	$(BIN)/sphinx-build -W --keep-going -n -q -b html -d build/doctrees docs build/docs

diagrams: $(VENV)/.installed  ## draw the state diagrams of the documentation from the transition tables
	$(BIN)/python docs/_ext/state_diagrams.py

SECONDS_EACH ?= 60
fuzz: $(VENV)/.tests-installed  ## fuzzers of all that reads bytes of others, a minute each; SECONDS_EACH=…
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS_EACH)

# QUICK=1 tries the benchmarks out with small sizes, LARGE=1 adds those that need much memory.
BENCH := $(BIN)/python tests/bench/bench.py $(if $(QUICK),--quick) $(if $(LARGE),--large)
bench: $(VENV)/.tests-installed  ## how fast and how large, next to the machine's limits; `make bench-NAME` for one part
	$(BENCH)

bench-%: $(VENV)/.tests-installed
	$(BENCH) $*

# A row takes minutes to hours; those that are recorded are left out: make tables-mcmahan ROWS='2nn-*' JOBS=2
tables-%: $(VENV)/.tests-installed  ## the tables of published results, next to the papers: mcmahan, niid, robust
	$(BIN)/python tests/tables/tables.py $* --jobs $(or $(JOBS),1) $(if $(ROWS),--rows '$(ROWS)')

bench-peers: $(VENV)/.tests-installed  ## the same work by rsync, scp, Flower, NVIDIA FLARE and pfl
	$(BENCH) --peers

# Debian's packages that the tests use; only root can install them, and only what is missing.
system-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    missing=$$(for name in $(APT); do dpkg -s $$name > /dev/null 2>&1 || echo $$name; done); \
	    if [ -n "$$missing" ]; then \
	        echo "installing" $$missing; \
	        apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing > /dev/null; \
	    fi; \
	else echo "not root on Debian: tests of what is not installed are skipped, and say so"; fi

clean:  ## remove the virtual environment and what tools leave behind
	rm -rf $(VENV) build demo .test-long .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
