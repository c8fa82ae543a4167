# The README's commands. Each does its own set-up in .venv and is quick the second time.
# The newest Python that runs it. 3.14 comes last: not every wheel is there for it yet.
PYTHON ?= $(shell for version in 3.13 3.12 3.11 3 3.14; do \
  python$$version -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
    && echo python$$version && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed$(if $(HASHES),-by-hash)

.PHONY: docs licences lock setup demo dalle-demo test test-python test-install fuzz ui search chromium lint soak-demo soak-download soak-removal train clean bench cluster-demo postgres

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.14 is on the PATH. Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef HASHES  # each file must have its hash in locked.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement locked.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
endif
	touch $@

# The hashes of all files of the versions in constraints.txt, by uv; run it when these change.
lock:
	test -x .cache/lock/bin/uv || { $(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install --quiet uv; }
	echo 'setuptools>=77' | .cache/lock/bin/uv pip compile pyproject.toml - --extra dev \
	  --constraint constraints.txt --universal --python-version 3.11 --generate-hashes --quiet \
	  --no-annotate --custom-compile-command 'make lock' --output-file locked.txt

# make ui PORT=3001: another port than 3000 (of demo and ui) or 1234 (of search).
AT := $(if $(PORT),--port $(PORT))

demo: setup
	$(BIN)/laion-assets demo --end-with-parent $(AT)

ui: setup
	$(BIN)/laion-assets ui --end-with-parent $(AT)

# A larger crawl of drawings, and a small DALL-E trained on the subset of it; its own lake.
dalle-demo: setup
	$(BIN)/laion-assets demo --world drawn --end-with-parent

search: setup
	$(BIN)/laion-assets search-page --end-with-parent $(AT)

# The search page is tested in the distribution's browser.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium; }

test: lint chromium postgres
	$(BIN)/python -m pytest --numprocesses auto --durations 10

# The tests with another Python, in an environment of its own: make test-python PYTHON=python3.13
test-python:
	$(MAKE) test VENV=.venv-$(notdir $(PYTHON)) PYTHON=$(PYTHON)

# Installs the wheel as a user would, outside the checkout: the base alone, then all with the demo.
test-install:
	rm -rf build/install && mkdir -p build/install
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/install .
	$(PYTHON) -m venv build/install/base && $(PYTHON) -m venv build/install/all
	build/install/base/bin/pip install --quiet --constraint constraints.txt build/install/*.whl
	cd build/install && base/bin/laion-assets --help >base.txt && ! base/bin/python -c 'import torch' 2>/dev/null
	cd build/install && base/bin/python -c 'import laion_assets.definitions, laion_assets.demo.service_process, laion_assets.preflight.checks'
	build/install/all/bin/pip install --quiet --constraint constraints.txt "$$(echo build/install/*.whl)[all]"
	cd build/install && all/bin/laion-assets demo

# Fuzzes what reads strangers' bytes, ten minutes by default: docs/development.md.
FUZZ_SECONDS ?= 600
fuzz: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,fuzz]'
	$(BIN)/python -m tests.fuzz.run $(FUZZ_SECONDS) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	VIRTUAL_ENV=$(abspath $(VENV)) PATH="$(abspath $(BIN)):$$PATH" DAGSTER_DISABLE_TELEMETRY=yes dg check defs

# Kills the demo at random moments and compares what comes out (slow).
soak-demo: setup
	$(BIN)/python -m tests.soak.kill_demo --kills 5

# Kills downloads at random moments and compares what comes out (slow).
soak-download: setup
	$(BIN)/python -m tests.soak.kill_download --kills 50

# Kills removals at random moments, gives the command again, and looks for what is lost or left (slow).
soak-removal: setup
	$(BIN)/python -m tests.soak.kill_removal --kills 50

# Debian's Postgres, for tests and cluster-demo; what uses it starts one of its own in a folder and ends it.
postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends postgresql; }

# Eight segments on three machines (Ray, Postgres, an object store that fails), one of them lost,
# compared with an undisturbed run: docs/operations.md.
cluster-demo: setup postgres
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,cluster]'
	$(BIN)/python -m deploy.cluster_demo.run $(ARGS)

bench-scale: chromium postgres

# Each against its peer, the peer in its own environment (slow); the tables go into docs/benchmarks.md,
# and what a crawl costs by them into docs/operations.md and the package: look at the difference before
# you commit it, as small or disturbed runs change both.
BENCHMARKS := $(notdir $(patsubst %/run.py,%,$(wildcard benchmarks/*/run.py)))

bench: $(addprefix bench-,$(BENCHMARKS))

bench-%: setup
	$(BIN)/python -m benchmarks.$*.run $(ARGS)
	$(BIN)/python -m deploy.cost >/dev/null

# Remakes the shipped CLIP, after it the sample crawl's pictures and plan, and the autoencoder of
# drawings that learns from these, too (needs the registries).
train: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement training/requirements.txt
	$(BIN)/python -m training.train
	$(BIN)/python -m training.watermark_head
	$(BIN)/python -m training.sample_images
	$(BIN)/python -m training.tokenizer

# Rewrites the tables of docs/ that are made from the code; a test compares them.
docs: setup
	$(BIN)/python -m docs.formats

licences: setup
	$(BIN)/python -m docs.licences

# Forgets the demo: its lake, its Dagster instance, the built sample crawl.
clean:
	rm -rf .demo .dagster_home
