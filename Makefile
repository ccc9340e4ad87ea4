# Everything a fresh Linux machine needs: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DIST_VENV ?= .venv-dist
ENGINES := ncnn litert executorch
PY := $(VENV)/bin/python
TORCH := torch==2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO_DIR := YOLOX_outputs/demo
DEMO_IMAGES = $$($(PY) -c 'from yolox.data.sample_dataset import sample_set_dir; print(sample_set_dir() / "val2017")')
DEMO_RECIPE := -b 8 input_size 192 test_size 224 random_size 5,7 max_epoch 210 no_aug_epochs 10 warmup_epochs 2 eval_interval 25 \
  basic_lr_per_img 0.0015 mosaic_prob 0.3 mosaic_scale 0.7,1.5 degrees 0 shear 0 hsv_prob 0 ema_time_constant 500
DEMO_METHODS := native_int8 openvino_fp32 onnxruntime_fp32
ifeq ($(shell grep -qs avx512_bf16 /proc/cpuinfo && echo yes),yes)
DEMO_RECIPE += --precision bf16
DEMO_METHODS += bf16 openvino_bf16
endif
FUZZED := coco yolo voc data_yaml experiments images checkpoints artifacts onnx
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env dev ipex engines demo test quick lint docs fuzz slow bench bench-guard dist dist-check lock versions clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(VENV)/.ready  ## the virtual environment: training, inference and the service

$(VENV)/.ready: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else "Python %d.%d found, 3.10 to 3.13 needed: make PYTHON=python3.11 ..." % v)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# The CPU build: a quick try at PyTorch's own index for torch alone, then the default index.
	$(PY) -c 'import torch' 2>/dev/null || \
	  timeout 300 $(PY) -m pip install --quiet --timeout 5 --retries 0 --no-deps --index-url $(TORCH_CPU_INDEX) $(TORCH) 2>/dev/null || \
	  $(PY) -m pip install --quiet -c constraints.txt $(TORCH)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[inference,serve]'
	touch $@

dev: $(VENV)/.dev  ## all optional libraries and what the tests need besides

$(VENV)/.dev: $(VENV)/.ready
	$(PY) -m pip install --quiet -c constraints.txt -e '.[inference,ncnn,ray,spark,tables,serve,tune,wandb,mlflow,dev]'
	@# It asks for another build of the OpenCV that is here.
	$(PY) -m pip install --quiet -c constraints.txt --no-deps trackers
	touch $@

ipex: .venv-ipex/.ready  ## a second environment with Intel's extension and the PyTorch it needs (gigabytes)

.venv-ipex/.ready: requirements/ipex.txt constraints.txt setup.py
	test -x .venv-ipex/bin/python || $(PYTHON) -m venv .venv-ipex
	grep -vE '^(torch|torchao)==' constraints.txt > .venv-ipex/constraints.txt
	@# A quick try at the CPU build; the default index has CUDA builds alone, which need 4 GB of libraries to be imported.
	timeout 300 .venv-ipex/bin/python -m pip install --quiet --timeout 5 --retries 0 --no-deps --index-url $(TORCH_CPU_INDEX) torch==2.8.0 2>/dev/null || true
	.venv-ipex/bin/python -m pip install --quiet --no-deps -e .
	@# What the package needs, but for its own bound on PyTorch, which is newer.
	.venv-ipex/bin/python -c 'from importlib.metadata import requires; print(*(need for need in requires("yolox-cpu") if "extra ==" not in need and not need.startswith("torch>")), sep="\n")' > .venv-ipex/requirements.txt
	.venv-ipex/bin/python -m pip install --quiet -c .venv-ipex/constraints.txt -r requirements/ipex.txt -r .venv-ipex/requirements.txt
	touch $@

engines: dev $(ENGINES:%=.venv-%/.ready)  ## environments of the engines that benchmarks/engines compares with (4 GB)

.venv-%/.ready: requirements/%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@# PyTorch as for env; where only the default index answers, with the libraries that its build needs.
	! grep -q '^torch==' $< || timeout 300 .venv-$*/bin/python -m pip install --quiet --timeout 5 --retries 0 --no-deps \
	  --index-url $(TORCH_CPU_INDEX) $(TORCH) 2>/dev/null || .venv-$*/bin/python -m pip install --quiet $(TORCH)
	.venv-$*/bin/python -m pip install --quiet --no-deps -r $<
	touch $@

demo: env  ## sample data, a training from scratch, evaluation, pictures, the inference table
	$(PY) -m yolox.tools.train -n yolox_nano -expn demo $(DEMO_RECIPE)
	$(PY) -m yolox.tools.eval -c $(DEMO_DIR)/best_ckpt.pth
	$(PY) -m yolox.tools.demo image -c $(DEMO_DIR)/best_ckpt.pth --path $(DEMO_IMAGES) --output_dir $(DEMO_DIR)/pictures
	$(PY) -m yolox.tools.inference_demo -c $(DEMO_DIR)/best_ckpt.pth -b 16 --methods $(DEMO_METHODS) --time_budget 180 \
	  --plot $(DEMO_DIR)/inference.png --save $(DEMO_DIR)/deployed
	@echo "look at: $(DEMO_DIR)/report.html  $(DEMO_DIR)/pictures  $(DEMO_DIR)/inference.png"

test: dev lint docs  ## style, types, the documentation site and all tests but the slow ones
	@$(MAKE) --no-print-directory ipex || { \
	  echo "**********************************************************************"; \
	  echo "** .venv-ipex could not be built (see above): the IPEX tests will be  "; \
	  echo "** skipped. Everything else is tested.                                "; \
	  echo "**********************************************************************"; } >&2
	$(PY) -m pytest -q --durations=15

quick: dev lint  ## style, types and the tests that need neither other processes nor converters
	$(PY) -m pytest -q -m "not slow and not processes and not backends"

docs: dev  ## the documentation site in docs/_build, any warning being an error
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build

lint: dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fuzz: dev  ## coverage-guided fuzzing of the readers of foreign files, FUZZ_SECONDS (3600) each; findings in fuzzing/
	$(PY) -m pip install --quiet -r requirements/fuzz.txt
	for reader in $(FUZZED); do $(PY) tests/fuzzing/fuzz.py $$reader $(or $(FUZZ_SECONDS),3600) fuzzing; done
	@! ls fuzzing/*/findings/* 2>/dev/null

slow: dev  ## trainings to an AP, tens of minutes
	$(PY) -m pytest -q -m slow

bench: dev  ## all benchmarks, under 30 minutes on two cores; results in benchmarks/results
	$(PY) -m benchmarks.train_throughput
	$(PY) -m benchmarks.data_pipeline
	$(PY) -m benchmarks.inference_methods
	$(PY) -m benchmarks.scaling
	$(PY) -m benchmarks.evaluation

bench-guard: dev  ## what became slower since the commit AGAINST (the one before), by turns in one run
	$(PY) -m benchmarks.guard $(or $(AGAINST),HEAD~1)

dist: dev $(DIST_VENV)/.ready  ## a release of the last commit in dist/: wheel and source, with hashes, licences and bill of materials
	.ci/wheel $(DIST_VENV)
	$(DIST_VENV)/bin/python -m cyclonedx_py environment --output-reproducible -o dist/sbom.cdx.json $(PY)
	$(DIST_VENV)/bin/pip-licenses --python=$(PY) --format=markdown --with-urls > dist/licences.md
	@$(DIST_VENV)/bin/pip-audit --path $$($(PY) -c 'import site; print(site.getsitepackages()[0])') > dist/audit.txt 2>&1 || \
	  echo "pip-audit found something, or could not ask: see dist/audit.txt"
	cd dist && sha256sum *.whl *.tar.gz *.json *.md > SHA256SUMS

dist-check: dist  ## the release as others meet it: built again elsewhere, then used where there is no compiler
	.ci/dist-check $(PY) $(DIST_VENV)

$(DIST_VENV)/.ready: requirements/dist.txt
	test -x $(DIST_VENV)/bin/python || $(PYTHON) -m venv $(DIST_VENV)
	$(DIST_VENV)/bin/python -m pip install --quiet -r requirements/dist.txt
	touch $@

lock: $(DIST_VENV)/.ready  ## hashes of the tested versions, for pip install --require-hashes
	$(DIST_VENV)/bin/uv pip compile --quiet --no-deps --universal --python-version 3.10 --generate-hashes --no-emit-package torch \
	  --no-annotate --custom-compile-command "make lock" constraints.txt -o requirements/tested.txt

versions: $(DIST_VENV)/.ready  ## quick tests on the lowest versions that setup.py allows and on the newest that there are
	.ci/versions $(DIST_VENV)/bin/uv 3.10 lowest-direct
	.ci/versions $(DIST_VENV)/bin/uv 3.12 highest
	.ci/versions $(DIST_VENV)/bin/uv 3.13 highest

clean:  ## remove the environment and all outputs
	rm -rf $(VENV) .venv-ipex $(ENGINES:%=.venv-%) $(DIST_VENV) build dist *.egg-info YOLOX_outputs
