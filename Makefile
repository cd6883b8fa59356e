# Two commands do everything: `make demo` and `make test`. Each sets up its own .venv on the first call.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
# The CPU is enough for the demo; DEVICE=auto takes a GPU where there is one.
DEVICE ?= auto

.DEFAULT_GOAL := help
.PHONY: help demo elpv panels experiments bench bench-gpu test test-slow lint format docs package install clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(VENV)/.installed ## Set up .venv with the package and all it needs

# Made anew only when the package's needs change.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "Setting up $(VENV): several GB on the first call ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[elpv,onnx,openvino,data,detection,inspect,demo,hub,docs,dev]"
	@touch $@

demo: install ## Train on real photographs, evaluate, predict, export, measure, and say what to look at
	@rm -rf $(RUN)
	$(BIN)/patnet train --config demo/recipe.yaml --out $(RUN) --cache_dir runs/cache --accelerator $(DEVICE)
	$(BIN)/patnet evaluate $(RUN) --accelerator $(DEVICE)
	@$(BIN)/python demo/cells.py $(RUN)/cells
	$(BIN)/patnet predict $(RUN) $(RUN)/cells --sheet $(RUN)/predictions.png --accelerator $(DEVICE)
	$(BIN)/patnet export $(RUN) --out $(RUN)/patnet.onnx
	$(BIN)/patnet bench $(RUN) --batch 1 --seconds 2 --out $(RUN)/speed
	@printf '\nLook at\n'
	@printf '  %s\n' $(RUN)/curves.png $(RUN)/evaluation-test/confusion_matrix.png \
		$(RUN)/evaluation-test/mistakes.png $(RUN)/predictions.png
	@printf '\nOr drop pictures of your own:\n  %s\n' '$(BIN)/patnet demo $(RUN)'

# bf16-mixed is faster on GPUs, and on CPUs with instructions for it.
PRECISION ?= 32-true
ELPV := --cache_dir runs/cache --precision $(PRECISION) --accelerator $(DEVICE)
elpv: install ## Learn painted defects, then ELPV with three seeds, and print their mean test accuracy; goes on where it was
	@if [ -f runs/painted/config.yaml ]; then options=--resume; else options="--recipe elpv_painted"; fi; \
		$(BIN)/patnet train $$options --out runs/painted $(ELPV)
	@for seed in 0 1 2; do \
		if [ -f runs/elpv-$$seed/config.yaml ]; then options=--resume; \
		else options="--recipe elpv_tuned --weights runs/painted --seed $$seed"; fi; \
		$(BIN)/patnet train $$options --out runs/elpv-$$seed $(ELPV) && \
		$(BIN)/patnet evaluate runs/elpv-$$seed --views 8 --accelerator $(DEVICE) || exit; \
	done
	@$(BIN)/python demo/mean.py runs/elpv-0 runs/elpv-1 runs/elpv-2

# The backbone of the small detector; make panels BACKBONE=fasternet_t0 trains the same over another.
BACKBONE ?= patnet_t0
PANELS := runs/panels-$(BACKBONE)
panels: install ## Train a small Mask R-CNN on solar panels, evaluate it, and draw what it finds; goes on where it was
	@test -d runs/panels || $(BIN)/patnet data elpv-panels --out runs/panels
	@if [ -f runs/elpv-$(BACKBONE)/config.yaml ]; then options=--resume; else options="--recipe elpv --model $(BACKBONE)"; fi; \
		$(BIN)/patnet train $$options --out runs/elpv-$(BACKBONE) --cache_dir runs/cache --accelerator $(DEVICE)
	@if [ -f $(PANELS)/config.yaml ]; then options=--resume; \
		else options="--recipe panels --data runs/panels --backbone $(BACKBONE) --weights runs/elpv-$(BACKBONE)"; fi; \
		$(BIN)/patnet detect train $$options --out $(PANELS) --accelerator $(DEVICE)
	$(BIN)/patnet detect evaluate $(PANELS) --accelerator $(DEVICE)
	$(BIN)/patnet detect evaluate $(PANELS) --class_agnostic --accelerator $(DEVICE)
	$(BIN)/patnet detect predict $(PANELS) 'runs/panels/test/0000*.png' --max_overlap 0.5 --out $(PANELS)/drawn --accelerator $(DEVICE)

# Trained with three seeds each; of the others the costs alone, a minute to two and a half each. Positions need room and a rate
# at which their tables leave the zero that they start from.
TRAINED := components attentions gaussianity position redundancy
COSTED := partial-vs-full mixers allocation last-stage ratio norms
experiments: install ## Try the paper's claims on ELPV, hours on a CPU, into docs/experiments; goes on where it was
	@for name in $(TRAINED); do \
		case $$name in \
			position) options="--size 96 --epochs 12 --lr 0.001 --seeds 3";; \
			redundancy) options="--size 64 --epochs 10 --seeds 1";; \
			*) options="--size 64 --epochs 10 --seeds 3";; \
		esac; \
		$(BIN)/patnet experiment $$name --data elpv $$options --out runs/experiments/$$name \
			--cache_dir runs/cache --accelerator $(DEVICE) || exit; \
	done
	@for name in $(COSTED); do \
		$(BIN)/patnet experiment $$name --cost_only --out runs/experiments/$$name --accelerator $(DEVICE) || exit; \
	done
	$(BIN)/patnet experiment report runs/experiments --out docs/experiments

bench: install ## Measure PATNets beside FasterNets on the CPU, under ten minutes, into docs/benchmarks.md
	$(BIN)/patnet bench --out docs

# Takes a Python that has torch and timm, for a machine with a GPU may have no network: make bench-gpu GPU_PYTHON=...
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
bench-gpu: ## The same on a GPU, in nine minutes, into docs/benchmarks-gpu.md; needs torch and timm only
	PYTHONPATH=src $(GPU_PYTHON) -m patnet.benchmark --gpu --minutes 8 --out docs

test: install lint ## Lint, type-check and run the tests (ten minutes on two cores)
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: install ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

lint: install ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## Build the documentation into site/, and look for what it would load from elsewhere
	$(BIN)/python docs/scripts/drawings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python docs/scripts/outside.py site
	@echo "Open site/index.html, or serve it with its search: $(BIN)/python -m http.server --directory site"

package: install ## Build wheel and sdist into dist/, and try the wheel in an environment of its own
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	DIST=dist $(BIN)/python -m pytest tests/test_package.py -m slow -rP

clean: ## Remove the environment, the runs, the site, the packages and the caches
	rm -rf $(VENV) runs site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
