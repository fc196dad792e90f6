# The developer's commands. PYTHON=... picks the interpreter, ISAS=avx2 builds one instruction set.
PYTHON ?= python
ISAS ?= all
BUILD ?= build/dev

.PHONY: build sim cuda test test-sim quick lint format clean
build:  ## compile in place: python/convgrad/_cpu*.so, _tape*.so
	cmake -S . -B $(BUILD) -G Ninja -DCONVGRAD_ISAS="$(ISAS)" -DCMAKE_INSTALL_PREFIX=python \
	  -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) > /dev/null
	cmake --build $(BUILD)
	cmake --install $(BUILD) > /dev/null
sim cuda:  ## the same for the CUDA kernels: in the simulator, for a GPU (nvcc)
	cmake -S . -B $(BUILD)-$@ -G Ninja -DCONVGRAD_CPU=OFF -DCONVGRAD_CUDA$(if $(filter sim,$@),_SIM)=ON \
	  -DCONVGRAD_SELFTEST=ON -DCONVGRAD_LAB=ON \
	  -DCMAKE_INSTALL_PREFIX=python \
	  -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) > /dev/null
	cmake --build $(BUILD)-$@
	cmake --install $(BUILD)-$@ > /dev/null
test: build
	PYTHONPATH=python $(PYTHON) -m pytest
test-sim: build sim  ## the suite on the simulated GPU
	CONVGRAD_CUDA_SIM=1 CONVGRAD_TEST_DEVICE=cuda PYTHONPATH=python $(PYTHON) -m pytest -n 2
quick: build
	PYTHONPATH=python $(PYTHON) -m pytest -m quick
lint:
	ruff check . && ruff format --check . && mypy && clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
format:
	ruff check --fix . ; ruff format . ; clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
clean:
	rm -rf build python/convgrad/*.so
