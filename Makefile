# make figures [DATA=fabrics] [RES=224] [ARGS=...]   train the 16 models; table, Figures 4 and 5, page
# make test                                          run the test suite
# make test-slow                                     run the tests that take too long for it: experiments end to end, more cases
# make test-slurm                                    install and start a Slurm of one node, and run a sweep on it; Debian, as root
# make test-browser                                  install Chromium, and look at pages of sweeps in it; Debian, as root
# make faults [ARGS=--count=1]                       inject faults into a small run, and write the table of what survived
# make fuzz [ARGS=--seconds=60]                      run random command lines on random files for five minutes
# make parity                                        train beside TensorFlow, from the same weights on the same batches
# make benchmark [ARGS=--quick]                      measure our speed and that of the other implementations installed
# make benchmark-input [ARGS=--quick]                measure the input pipeline alone, and how soon a resumed run has its first batch
# make benchmark-group                               measure several models on one pass over the data, and each alone
# Each target first sets up .venv from requirements.txt, once.

PYTHON ?= python3
DATA ?= fabrics
RES ?= 0
NAME ?= $(notdir $(subst :,/,$(DATA)))
OUT ?= runs/$(NAME)
VENV := .venv/bin/python

.PHONY: figures test test-slow test-slurm test-browser faults fuzz parity benchmark benchmark-input benchmark-group

figures: .venv/ready
	@$(VENV) -m mobilenet_jax sweep --config=configs/grid.py:data=$(DATA),res=$(RES) --workdir=$(OUT) $(ARGS)
	@$(VENV) -m experiments.figures --results=$(OUT)/results.csv --out=$(OUT)
	@$(VENV) -m mobilenet_jax report $(OUT)

# Compiled without optimisation, which saves a fifth of the CPU time. make test-slow repeats what depends on it as users
# compile it.
test: .venv/ready .venv/ready-export
	@XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0" $(VENV) -m pytest -q -n 2 --dist loadfile tests

test-slow: .venv/ready .venv/ready-export
	@$(VENV) -m pytest -q -n 2 -m slow tests
	@$(VENV) -m pytest -q -n 2 --dist loadfile tests/models tests/training tests/trained

test-slurm: .venv/ready
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { apt-get -qq update && apt-get -qq install --no-install-recommends slurm-wlm munge; }
	@$(VENV) -m pytest -q -m slurm tests/sweeps/test_slurm.py

test-browser: .venv/ready .venv/ready-browser
	@command -v chromium >/dev/null || { apt-get -qq update && apt-get -qq install --no-install-recommends \
	    chromium fonts-dejavu-core; }
	@$(VENV) -m pytest -q -m browser tests/sweeps/test_browser.py

faults: .venv/ready
	@$(VENV) -m experiments.faults $(ARGS)

fuzz: .venv/ready .venv/ready-export
	@$(VENV) -m experiments.fuzz $(ARGS)

parity: .venv/ready
	@$(VENV) -m experiments.parity --out=experiments/results $(ARGS)

benchmark: .venv/ready
	@$(VENV) -m experiments.benchmark $(ARGS)

benchmark-input: .venv/ready
	@$(VENV) -m experiments.benchmark_input $(ARGS)

benchmark-group: .venv/ready
	@$(VENV) -m experiments.benchmark_group $(ARGS)

.venv/ready-export: requirements-export.txt .venv/ready
	@.venv/bin/pip install -q --disable-pip-version-check -r requirements-export.txt
	@touch .venv/ready-export

.venv/ready-browser: requirements-browser.txt .venv/ready
	@.venv/bin/pip install -q --disable-pip-version-check -r requirements-browser.txt
	@touch .venv/ready-browser

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; name it with make PYTHON=...")'
	@echo "setting up .venv from requirements.txt: a minute or two, once"
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
	@.venv/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch .venv/ready
