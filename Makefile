# make demo | test | test-all | test-diffusers | trial | test-criterion | test-cuda | bench | cuda | lint | docs
#      sanitize-cpu | sanitize-cuda | emulate-amx | clean
# Each but cuda and clean makes .venv where there is none, installs what constraints.txt pins, and runs.
# PIP_INDEX_URL and PIP_EXTRA_INDEX_URL reach pip as they are.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
EXTRAS := test,lint,t2v,plot

.PHONY: install demo triton-beside diffusers-beside test test-all test-diffusers trial test-criterion test-cuda bench cuda cuda-merge lint docs sanitize-cpu
.PHONY: sanitize-cuda emulate-amx clean
.DEFAULT_GOAL := demo

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch numpy
	$(PIP) install -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

demo: install
	$(BIN)/latte-fast demo --out demo

# what torch 2.11 brings, beside the pinned one: kernels are compiled ahead by both, and without it those tests skip
TRITON_BESIDE := $(VENV)/triton-3.6.0
triton-beside: $(TRITON_BESIDE)

$(TRITON_BESIDE): $(VENV)/.installed
	$(PIP) install --no-deps --target $@.partial triton==3.6.0 && mv $@.partial $@ || echo "no Triton 3.6.0 beside"

# the oldest diffusers that is supported, with the transformers of its day; without it its test skips
DIFFUSERS_BESIDE := $(VENV)/diffusers-0.32.0
OF_ITS_DAY := transformers==4.47.1 huggingface_hub==0.27.1 tokenizers==0.21.0 accelerate==1.2.1 regex requests urllib3
OF_ITS_DAY += idna charset_normalizer certifi importlib_metadata zipp psutil
diffusers-beside: $(DIFFUSERS_BESIDE)

$(DIFFUSERS_BESIDE): $(VENV)/.installed
	$(PIP) install --no-deps --target $@.partial diffusers==0.32.0 $(OF_ITS_DAY) && mv $@.partial $@ \
		|| echo "no diffusers 0.32.0 beside"

test: install triton-beside
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: install triton-beside diffusers-beside
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# half an hour on two cores: commands raced, killed, on full disks, with edited folders; illegal calls; changed modules
trial: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/trials -s

# weekly and before a release, 6 minutes on two cores: the criterion under other libraries' sums and other draws
test-criterion: install
	$(BIN)/python -m tests.criterion

# what diffusers works with, beside it: nothing skips in these tests, which are most of what LatteT2V is held to there
BESIDE_DIFFUSERS := $(VENV)/beside-diffusers
test-diffusers: install diffusers-beside $(BESIDE_DIFFUSERS)
	PYTHONPATH=$(BESIDE_DIFFUSERS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal tests/integrations

$(BESIDE_DIFFUSERS): $(VENV)/.installed
	$(PIP) install --no-deps --target $@.partial accelerate peft psutil torchao bitsandbytes && mv $@.partial $@

test-cuda: install
	$(BIN)/python -m pytest -m cuda

# the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, at each level
sanitize-cpu: install
	$(PIP) install -c constraints.txt setuptools pybind11 ninja
	PYTHON=$(BIN)/python tests/ext/sanitize.sh

# the AMX level's code on a machine with AVX512-BF16 and no AMX, its tiles emulated
emulate-amx: install
	$(PIP) install -c constraints.txt setuptools pybind11 ninja
	PYTHON=$(BIN)/python tests/ext/emulate_amx.sh

# the Triton kernels under memcheck and racecheck, on a CUDA machine; torch's caching allocator would hide an access
# beyond a tensor
SANITIZED := PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1
sanitize-cuda: install
	$(SANITIZED) --tool memcheck $(BIN)/python -m pytest -m "cuda and not slow" tests/kernels
	$(SANITIZED) --tool racecheck $(BIN)/python -m pytest -m "cuda and not slow" tests/kernels

bench: install
	$(BIN)/latte-fast bench

# on a machine with a GPU and without a network, 10 minutes at a time: OUT=folder, ARCHIVE=what the call before left there,
# STAGES="build smoke ..."; DRY=1 tries them without a GPU. benchmarks/cuda.sh has the rest
cuda:
	PYTHON=$(or $(CUDA_PYTHON),$(PYTHON)) benchmarks/cuda.sh $(STAGES)

# what an archive brought home, into benchmarks/results, kernels/configs and the figures of README and docs
cuda-merge: install
	$(BIN)/python -m benchmarks.cuda merge $(ARCHIVE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# site/, from docs/; it needs neither torch nor the package. Not with -q, which hides the warnings that --strict counts
docs:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt "mkdocs>=1.6,<2" pygments
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build site *.egg-info latte_fast/*.so latte_fast/_build_info.json
