VENV ?= .venv
PYTHON ?= python3
TEST_EXTRAS ?= test
GPU_OUT ?= build/gpu
BIN = $(VENV)/bin
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc python third_party -type f ! -name '*.pyc' ! -name '*.so')
# A machine without a GPU takes the torch that its constraints name; empty where there is a GPU.
PIP_CONSTRAINT ?= $(shell nvidia-smi >/dev/null 2>&1 || echo $(CURDIR)/.ci/cpu-constraints.txt)
export PIP_CONSTRAINT

.PHONY: demo test dev bench format lint emulated gpu gpu-wheels
demo: $(VENV)/demo.installed
	$(BIN)/fastshape demo
test: $(VENV)/$(TEST_EXTRAS).installed emulated
	$(BIN)/python -m pytest $(PYTEST_ARGS)
bench: $(VENV)/peers.installed
	$(BIN)/python -m benchmarks $(BENCH_ARGS)
dev: emulated
	$(BIN)/python -m pip install -q -e '.[test,dev,peers]' && $(BIN)/pre-commit install
format: $(BIN)/ruff
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu*' 'tests/*.cpp' | xargs $(BIN)/clang-format -i
lint: $(BIN)/ruff
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && MYPYPATH=python $(BIN)/mypy benchmarks
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu*' 'tests/*.cpp' | xargs $(BIN)/clang-format --dry-run -Werror
emulated: $(VENV)/$(TEST_EXTRAS).installed  # the CUDA kernels as C++ that runs on the CPU, the tests' third back end
	$(BIN)/cmake -S . -B build/emulated -G Ninja -DFASTSHAPE_EMULATION=ON -DFASTSHAPE_CUDA=OFF \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) >build/emulated.log
	$(BIN)/cmake --build build/emulated --target _C_emulated
gpu: # on a machine with a GPU and without a network, after gpu-wheels on one with a network
	GPU_OUT=$(GPU_OUT) bash scripts/gpu.sh
gpu-wheels:
	bash scripts/gpu_wheels.sh .gpu-wheels
$(BIN)/ruff:
	$(MAKE) $(VENV)/dev.installed
$(VENV)/%.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p build && $(BIN)/python -m pip install -q '.[$*]'
	for extra in $$(echo $* | tr , ' '); do touch $(VENV)/$$extra.installed; done; touch $@
