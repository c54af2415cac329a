# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Tests of a file run in one process, since they share networks, runs and what is compiled.
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile

# Where the last bits of float arithmetic could decide: trainings, searches, recorded numbers.
SENSITIVE := tests/callbacks/test_training_guard.py tests/certificates/test_frames.py \
	tests/certificates/test_radius.py tests/certificates/test_golden.py tests/bounds/test_rebound.py

QUICK := tests/relaxations tests/perturbations tests/bounds/test_backward.py \
	tests/tracing/test_in_place.py tests/certificates/test_fidelity.py \
	tests/certificates/test_certificate.py tests/training/test_loss.py tests/test_layout.py

.PHONY: demo quick test test-processors test-all mutants fuzz planted kills hostile gallery \
	layout relaxations pages site zoo leaderboard bench clean

demo: .venv/ready
	$(BIN)/python -m popqorn_train.recipes.digits $(ARGS)

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy & types=$$!; $(BIN)/pytest -q -m "not slow" $(WORKERS) $(ARGS); tests=$$?; \
	wait $$types && exit $$tests

# The inner loop: what most mistakes in the core break, in less than a minute on two cores.
quick: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/pytest -q -x -m "not slow" $(WORKERS) $(QUICK) $(ARGS)

# The same arithmetic as on a processor without AVX, then as without a C++ compiler; `make test` uses
# what this machine has.
test-processors: .venv/ready
	ATEN_CPU_CAPABILITY=default $(BIN)/pytest -q -m "not slow" $(WORKERS) $(SENSITIVE) $(ARGS)
	POPQORN_KERNELS=0 $(BIN)/pytest -q -m "not slow" $(WORKERS) $(QUICK) $(ARGS)

test-all: .venv/ready
	$(BIN)/pytest -q $(WORKERS) $(ARGS)

# Plants faults in a copy and sees whether a test fails; ARGS="--only ID" for some of them.
mutants: .venv/ready
	$(BIN)/python tests/mutants/run.py $(ARGS)

# Attacks what is proved of random models; ARGS="--minutes 10 --seed 0".
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz $(ARGS)

# Networks with a counterexample that descent misses; ARGS="--count 8 --kinds lstm" for some of them.
planted: .venv/ready
	$(BIN)/python -m tests.fuzz.planted $(ARGS)

# Damages files and reads them; ARGS="--count 10000" for each reader.
hostile: .venv/ready
	$(BIN)/python -m tests.evaluation.hostile $(ARGS)

# Kills trainings under the monitor at 50 moments, or lets them fail; ARGS="--moments 10 --seed 50".
kills: .venv/ready
	$(BIN)/python -m tests.callbacks.kills $(ARGS)

gallery: .venv/ready
	$(BIN)/python -m popqorn_train.recipes.gallery $(ARGS)

# The packages and their imports, as docs/layout.svg.
layout: .venv/ready
	$(BIN)/python -m tests.draw_layout

# tanh between its lines, as docs/relaxations.png.
relaxations: .venv/ready
	$(BIN)/python -m tests.draw_relaxations

# The pages as a site in build/site; a warning is an error.
site: .venv/ready
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d build/doctrees . build/site

# Lists the networks that come with the package.
zoo: .venv/ready
	@$(BIN)/python -m popqorn_train.recipes.zoo

# Checks the files of leaderboard/ and writes their tables into docs/leaderboard.md.
leaderboard: .venv/ready
	$(BIN)/python -m tests.leaderboard

# Puts what commands print into the pages that show it; ARGS="demo" for some of them.
pages: .venv/ready
	$(BIN)/python -m tests.renew $(ARGS)

bench: .venv/ready
	$(BIN)/python tests/benchmarks/peers.py $(ARGS)

bench-%: .venv/ready
	$(BIN)/python tests/benchmarks/$*.py $(ARGS)

# The links let mypy and editors see callbacks/ and recipes/ under their installed names.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	ln -sfn ../callbacks popqorn_train/callbacks
	ln -sfn ../recipes popqorn_train/recipes
	touch $@

clean:
	rm -rf .venv popqorn_train/callbacks popqorn_train/recipes
