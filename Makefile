# Everything a fresh machine needs, given git, make and Python 3.11, 3.12 or 3.13.
PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv
PIP = bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

CHECK_PYTHON = $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"$(PYTHON) is Python {v[0]}.{v[1]}, expected 3.11 to 3.13: name one with make PYTHON=python3.12")'

.PHONY: demo test lint format clean

demo: $(DEMO)/.installed ## draw a slide, segment it, print the Dice
	$(DEMO)/bin/histoseg-run --demo

test: $(DEV)/.installed ## the whole test suite
	$(DEV)/bin/python -m pytest

lint: $(DEV)/.installed ## style and types
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

format: $(DEV)/.installed
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

clean:
	rm -rf $(DEMO) $(DEV) build dist

$(DEMO)/.installed: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/$(PIP) --editable '.[cpu]'
	touch $@

# pip reads dependency groups since 25.1
$(DEV)/.installed: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(DEV)
	$(DEV)/$(PIP) --upgrade pip
	$(DEV)/$(PIP) --editable '.[cpu,train,export,dicom,dask]' --group dev
	touch $@
