# The pieces of .ci/run, in the environment of .venv as it is. `make` lists them.
PYTHON := .venv/bin/python
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help environment format lint types contract docs pages quick tests slow exhaustive numeric all ci release matrix

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment: ## .venv with what the tests and checks need
	python3 -m venv .venv
	.venv/bin/pip install --quiet --upgrade pip
	.venv/bin/pip install --quiet ".[test]"
	.venv/bin/pip install --quiet --group dev --group release

format: ## rewrites files in the format, and fixes what the linter can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lint: ## what the linter finds, and files in another format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: ## mypy, for each system
	.venv/bin/mypy --platform linux
	.venv/bin/mypy --platform darwin
	.venv/bin/mypy --platform win32

contract: ## the layers, and the other rules of the source and its prose
	$(PYTHON) -m pytest -q tests/test_contract.py tests/test_prose.py

docs: ## the pages: their links, options, commands and output
	$(PYTHON) -m pytest -q -n auto tests/test_docs.py tests/test_written_pages.py tests/test_commands_in_docs.py tests/test_training_page.py tests/test_symptoms.py tests/test_programs_page.py

pages: ## writes what is made from the source: pages, the output of commands in the others, the marks of families, the tables of algorithms and programs
	$(PYTHON) docs/write_family_marks.py
	$(PYTHON) docs/write_model_classes.py
	$(PYTHON) docs/write_algorithm_index.py
	$(PYTHON) docs/write_program_index.py
	$(PYTHON) docs/write_algorithms.py
	$(PYTHON) docs/write_architectures.py
	$(PYTHON) docs/write_programs.py
	$(PYTHON) docs/write_checking.py
	$(PYTHON) docs/write_cli.py
	$(PYTHON) docs/write_formats.py
	$(PYTHON) docs/write_outputs.py
	$(PYTHON) packaging/write_light.py

quick: ## the rules, and the tests that neither compute much nor start programs: while one works
	$(PYTHON) -m pytest -q -n auto -m "not slow and not numeric" tests/test_contract.py tests/reading tests/matching tests/schemes tests/architectures tests/checking tests/maths

tests: ## the tests that the README runs: all but the slow ones
	$(PYTHON) -m pytest -n auto

slow: ## the other ones: real programs, whole products of tables, thousands of damaged files
	$(PYTHON) -m pytest -q -n auto -m "slow and not exhaustive"

exhaustive: ## the cases of long grids that .ci/run leaves out: before a release
	$(PYTHON) -m pytest -q -n auto -m exhaustive

numeric: ## the tests of floating point as on another processor: make numeric SETTING=ATEN_CPU_CAPABILITY=default
	env $(SETTING) $(PYTHON) -m pytest -q -n auto -m "numeric and not slow"

all: lint types contract docs tests slow ## everything but a new environment and other processors

ci: ## everything that must hold, in a new environment; takes long
	.ci/run

release: ## builds both forms into dist, and checks them; uploads nothing
	$(PYTHON) packaging/release.py

matrix: ## installs both forms with the oldest and the newest libraries, and runs them; takes long
	$(PYTHON) packaging/matrix.py
