# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Needs: Python 3.11 or 3.12 with venv, a C++ compiler, CMake 3.24, and a CUDA toolkit (nvcc) 12.8 or newer. No GPU.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
LOWEST_PYTHON ?= python3.10
SOURCES := mtmamba export calib runtime tests benchmarks examples

.PHONY: demo test lint types unit lowest format clean

demo: $(VENV)/.installed
	$(BIN)/python benchmarks/demo.py --folder demo

test: lint types unit

lint: $(VENV)/.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	git ls-files '*.h' '*.cuh' '*.cu' '*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

# mypy reads the installed layout, where export/ is mtmamba.export and so on.
types: $(VENV)/.installed
	rm -rf build/types && mkdir -p build/types/mtmamba
	ln -s $(CURDIR)/mtmamba/* $(CURDIR)/export $(CURDIR)/calib $(CURDIR)/runtime build/types/mtmamba/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p mtmamba

unit: $(VENV)/.installed
	$(BIN)/python -m pytest

# Every test with the lowest versions that pyproject.toml allows, on the lowest Python. Takes a quarter of an hour.
LOWEST := build/lowest
lowest: export VIRTUAL_ENV = $(CURDIR)/$(LOWEST)
lowest:
	$(LOWEST_PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra model --extra cpu --extra rtx --extra train --extra eval \
		--extra dev --output-file $(LOWEST)/requirements.txt pyproject.toml
	$(LOWEST)/bin/uv pip install --quiet --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --no-deps --editable . kernel-lens
	$(LOWEST)/bin/uv pip install --quiet --upgrade pytest
	PATH=$(VIRTUAL_ENV)/bin:$$PATH $(LOWEST)/bin/python -m pytest -o filterwarnings=default

format: $(VENV)/.installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	git ls-files '*.h' '*.cuh' '*.cu' '*.cpp' | xargs $(BIN)/clang-format -i

# kernel-lens carries TensorRT's C++ headers; what it depends on is not needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[model,cpu,rtx,train,eval,ray,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps kernel-lens
	touch $@

clean:
	rm -rf $(VENV) build demo dist *.egg-info
