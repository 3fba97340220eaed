# Verbs for people; `.ci/run` calls the same ones from a clean clone. PYTHON chooses the interpreter.
PYTHON ?= python

.PHONY: help setup test fuzz kernels types style docs bench

help:  ## list the verbs
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:  ## install the project with what its tests need
	$(PYTHON) -m pip install -e '.[test]'

test:  ## run all tests in two processes, print branch coverage, fail below its floor
	$(PYTHON) -m pytest --cov -n 2 --dist loadfile

fuzz:  ## 100,000 strange inputs for all that reads what strangers send or disks hold; RUNS and TOOL change that
	$(PYTHON) tests/fuzz.py --runs $(or $(RUNS),100000) --tool $(or $(TOOL),hypothesis)

kernels:  ## compile every kernel for three GPU generations; needs no GPU
	$(PYTHON) -m kernels.compile --arch 80 90 100

types:  ## check types, strictly
	$(PYTHON) -m mypy

style:  ## check style and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

docs:  ## check the layout, and every path and command that a document names
	$(PYTHON) -m pytest -q tests/test_layout.py

bench:  ## measure the engine's stages beside public libraries
	$(PYTHON) -m engine.bench
