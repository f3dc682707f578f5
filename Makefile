PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# Python compiles what it imports when it first does; pip would compile all of torch, most of which nobody imports.
PIP_INSTALL := $(RUN) -m pip install --quiet --no-compile --constraint constraints.txt
# What runs need, and after it what working on the project needs.
BASE := $(VENV)/.base
STAMP := $(VENV)/.installed
# Extras to install. DALI, 0.6 GB, loads data for a GPU: it is taken where there is one, or asked for,
# make install EXTRAS=dev,dali
EXTRAS ?= dev$(if $(wildcard /dev/nvidiactl),$(comma)dali)
comma := ,

.PHONY: install demo test test-shuffled test-elsewhere lint bench bench-check gates torture profile sanitize arm64

# Nothing to do until the description of the build or its sources change.
install: $(STAMP)

# torch and the build tools first: the extension is then built against the torch it will run with.
$(BASE): pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/* csrc/*/*/*)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch setuptools cmake ninja
	$(PIP_INSTALL) --no-build-isolation --editable .
	@$(RUN) -c "from jepa_fast.kernels import extension; print(extension.load() or 'jepa_fast._C is in place')"
	@touch $@

$(STAMP): $(BASE) scripts/extras.py
	$(RUN) scripts/extras.py $(EXTRAS) > $(VENV)/extras.txt
	$(PIP_INSTALL) --requirement $(VENV)/extras.txt
	@touch $@

# From nothing to a trained and probed model, with its own data. Ends with the path of its report.
demo: DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: $(BASE)
	$(RUN) -m jepa_fast.train --out $(DEMO)
	$(RUN) -m jepa_fast.evaluate $(DEMO)
	$(RUN) -m jepa_fast.report $(DEMO)

# In two processes, half the time of one. What pytest-timeout prints is lost in such a process, so stacks come ten seconds
# before it ends one.
IN_TWO := $(RUN) -m pytest -n 2 -o faulthandler_timeout=590 -o faulthandler_exit_on_timeout=false
test test-shuffled test-elsewhere: export OMP_NUM_THREADS = 1
test: lint
	$(IN_TWO) $(ARGS)

# In random order: tests that need each other fail here. The order's seed is in the first lines; ARGS=--randomly-seed=N
# runs it again.
test-shuffled: install
	$(IN_TWO) -p randomly --randomly-dont-reset-seed $(ARGS)

# As where the system lacks what POSIX has (fcntl, resource, affinity, signal masks, fork), hidden here: tests that need
# it are skipped and say so. SYSTEM=bare also takes away the locks that Windows has.
SYSTEM ?= windows
test-elsewhere: export JEPA_FAST_SYSTEM = $(SYSTEM)
test-elsewhere: install
	$(IN_TWO) $(ARGS)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Figures of this machine, as a table and in bench/latest.json; correctness is checked before anything is timed. ISA=avx2
# holds ours and the baselines to AVX2 on a processor that has more; KEEP=--keep stores the results and draws the tables.
ifdef ISA
bench bench-check: export JEPA_FAST_CPU_ISA = $(ISA)
bench bench-check: export ATEN_CPU_CAPABILITY = $(ISA)
bench bench-check: export ONEDNN_MAX_CPU_ISA = $(ISA)
bench bench-check: export MKL_ENABLE_INSTRUCTIONS = $(shell echo $(ISA) | tr a-z A-Z)
endif
bench: install
	$(RUN) -m pytest bench --benchmark-json=bench/run.json
	$(RUN) -m scripts.bench_table bench/run.json $(KEEP)

# Fails where a speed-up has fallen by more than 30% against the stored results of BENCH_REFERENCE. On one thread, whose
# ratios depend the least on the number of cores and on what else they do.
BENCH_REFERENCE ?= bench/results/amd-epyc-1-thread
bench-check: export OMP_NUM_THREADS = 1
bench-check: install
	$(RUN) -m pytest bench --benchmark-json=bench/run.json
	$(RUN) -m scripts.bench_table bench/run.json --check $(BENCH_REFERENCE)

# Compiles every kernel for sm_80 and sm_90 and prints what it takes: CUDA C++ (needs nvcc), then Triton in this version
# and in the oldest one, whose rows are stored in kernels/gates.json. No GPU.
OLD_TRITON := build/triton-3.6.0
gates: install $(OLD_TRITON)/.installed
	$(RUN) -m scripts.gates
	$(RUN) -W ignore -m scripts.triton_gates --write
	$(OLD_TRITON)/bin/python -W ignore -m scripts.triton_gates --write
	$(RUN) -m scripts.triton_floors --write

# Its own environment, which finds everything but Triton in the project's.
$(OLD_TRITON)/.installed:
	$(RUN) -m venv $(OLD_TRITON)
	$(OLD_TRITON)/bin/python -m pip install --quiet --no-deps triton==3.6.0
	$(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(OLD_TRITON)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/project.pth
	@touch $@

# The compiled CPU ops without torch, under AddressSanitizer and UndefinedBehaviorSanitizer: two minutes.
sanitize:
	scripts/test_csrc.sh sanitize

# The same tests for arm64, cross-compiled and run by qemu; says which packages it needs.
arm64:
	scripts/test_csrc.sh arm64

# A run that is killed 20 times at random moments and resumed must end with the bits of one left alone: a few minutes.
torture: install
	$(RUN) scripts/torture.py

# Where a step's time goes: by nsys where it is installed, else by torch's own profiler. Arguments are train's.
profile: install
	scripts/profile.sh $(ARGS)
