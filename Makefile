# Everything a fresh Linux machine needs: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH := torch==2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO_DIR ?= YOLOX_outputs/demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env demo test lint slow bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(VENV)/.ready  ## build the virtual environment

$(VENV)/.ready: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else "Python %d.%d found, 3.10 to 3.13 needed: make PYTHON=python3.11 ..." % v)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# The CPU build: a quick try at PyTorch's own index for torch alone, then the default index.
	$(PY) -c 'import torch' 2>/dev/null || \
	  timeout 300 $(PY) -m pip install --quiet --timeout 5 --retries 0 --no-deps --index-url $(TORCH_CPU_INDEX) $(TORCH) 2>/dev/null || \
	  $(PY) -m pip install --quiet -c constraints.txt $(TORCH)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[inference,dev]'
	touch $@

demo: env  ## sample data, a short training, evaluation, a picture, the inference table
	$(PY) -m yolox.tools.train -n yolox_nano -expn demo --demo_run
	$(PY) -m yolox.tools.eval -c $(DEMO_DIR)/best_ckpt.pth

test: env lint  ## style, types and all tests but the slow ones
	$(PY) -m pytest -q --durations=15

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

slow: env  ## trainings to an AP, tens of minutes
	$(PY) -m pytest -q -m slow

clean:  ## remove the environment and all outputs
	rm -rf $(VENV) build dist *.egg-info YOLOX_outputs
