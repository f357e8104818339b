# make book                      run every chapter and build the book: _build/html/index.html
# make book PROFILE=laptop       the same with another profile
# make chapter N=02 PARAMS="seed=3 lr=0.1"   run one chapter, with another profile or other parameters
# make chapters                  list the chapters with their parameters, and the profiles
# make pair [N=02]               write the notebooks with outputs that are stored beside the chapters' text
# make test | lint | bench | lock | clean
#
# JOBS=4 runs so many chapters at a time in place of two, each with one thread.
# ENV=folder uses an environment of your own (conda: ENV=$CONDA_PREFIX) in place of .venv.

ENV     ?= .venv
PROFILE ?= quick
JOBS    ?= 2
BIN     := $(ENV)/bin
STAMP   := $(ENV)/.cdlib-installed

# zoo.py is not among them: it takes more than an hour, see there
BENCHMARKS = $(addprefix benchmarks/,arms.py capture.py data_loading.py import_time.py joint.py profilers.py)

# the extras of pyproject.toml that requirements.lock holds: all but executorch
LOCKED = train edge torchao weights cli book test

export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: book chapter chapters pair test lint bench lock clean env
.DEFAULT_GOAL := book

book: env
	@$(BIN)/python -m bookbuild --jobs=$(JOBS) book $(PROFILE)

chapter: env
	@$(BIN)/python -m bookbuild --jobs=$(JOBS) chapter $(N) $(PROFILE) $(PARAMS)

pair: env
	@$(BIN)/python -m bookbuild --jobs=$(JOBS) pair $(N)

chapters: env
	@$(BIN)/python -m bookbuild chapters

test: env
	@$(BIN)/python -m pytest notebooks tests --nbval-lax --nbval-current-env -n 2 --dist loadfile --no-loadscope-reorder

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo

bench: env
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

lock:
	uv pip compile --quiet --universal $(addprefix --extra ,$(LOCKED)) --no-annotate --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || ./.ci/make-env $(ENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
