# make demo: from a fresh checkout to pictures. make test: everything that needs no GPU.
# Another Python: make PYTHON=python3.12. Another place for the environment: make VENV=/somewhere.

PYTHON ?= python3
VENV ?= .venv
PIPELINE ?= examples/shapes-t2i/pipeline

BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e
DEMO_EXTRAS := export,openvino
TEST_EXTRAS := $(DEMO_EXTRAS),onnxruntime,rtx,video,dev
SOURCES := dexport exporter passes plugins runtime targets tests benchmarks examples

PACKAGES := chromium cmake g++ make pkg-config libonig-dev libpng-dev libssl-dev libutf8proc-dev nlohmann-json3-dev libcli11-dev doctest-dev \
  openssh-server openssh-client

.PHONY: demo test system lint types format clean

demo: $(VENV)/.installed-demo
	@mkdir -p demo
	$(BIN)/dexport build $(PIPELINE) --target cpu -o demo/shapes.dxb
	$(BIN)/dexport run demo/shapes.dxb --seed 1 -o demo/1.png --prompt "a small red circle at the top left"
	$(BIN)/dexport run demo/shapes.dxb --seed 2 -o demo/2.png --prompt "a large blue square at the center"
	$(BIN)/dexport run demo/shapes.dxb --seed 3 -o demo/3.png --prompt "a green triangle at the bottom right"
	$(BIN)/dexport run demo/shapes.dxb --seed 4 -o demo/4.png --prompt "a red circle left of a large blue square"
	@echo "Four pictures are in $(CURDIR)/demo: 1.png 2.png 3.png 4.png. The bundle that made them: demo/shapes.dxb"

# One process per core with one thread each; a file's tests stay together, for they share what they build.
test: lint types system $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

# What tests need from the system: a browser for the report's page, what the C++ runtime builds with, a server for `finalize --ssh`.
# Where it cannot be installed, the tests that need it say so and are skipped.
system:
	@dpkg -s $(PACKAGES) >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -qq -y --no-install-recommends $(PACKAGES) >/dev/null; } \
	  || echo "not installed, and no way to do it here: on Debian or Ubuntu, sudo apt-get install $(PACKAGES)"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/.installed-test
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) demo build runtime/cpp/build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps: nothing is installed again until pyproject.toml or constraints.txt change.
$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "no venv in this Python: on Debian or Ubuntu, apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[$(DEMO_EXTRAS)]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[$(TEST_EXTRAS)]'
	@touch $(VENV)/.installed-demo $@
