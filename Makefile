# make report   the whole study on the embedded default → results/report.html
# make test     every test but the slow ones; make test-slow: those
# make check    format, lint, and a dry run of every experiment
# make bench    time and memory of every step beside its limit, on a random model → results/bench/ (SHAPE=minicpm-2b)
# make tools    packed checkpoints and exports in other tools, each in an environment of its own under TOOLS (some GB):
#               transformers alone, vLLM, llama.cpp; CHECKPOINTS='A/checkpoint …' tries those instead of random ones
# make clean-method METHOD=NAME   forgets one method: its results, logs and benchmarks, of every model
# make audit    what is known against the pinned packages (needs a network; a report, no check)
# CORES=n limits the cores, PYTHON=… names the interpreter (3.11 or newer) that .venv is made from.

PYTHON ?= python3
CORES ?= all
TOOLS ?= .tools
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# folders of results/ that are no model's
NO_MODELS = $(foreach name,logs benchmarks figures sources best environments,results/$(name)/%)

.PHONY: report test test-slow check bench tools lock clean-method audit

report: .venv/complete
	snakemake results/report.html --cores $(CORES) --resources gpu=1

test: .venv/complete
	pytest -n 2 --dist loadscope -m 'not slow'

test-slow: .venv/complete
	pytest -n 2 --dist loadscope -m slow

check: .venv/complete
	ruff format --check .
	ruff check .
	snakefmt --check Snakefile rules
	snakemake --lint
	for overlay in experiments/*.yaml; do \
	    snakemake results/report.html --configfile $$overlay --cores 1 --resources gpu=1 --dry-run --quiet all || exit 1; \
	done

bench: .venv/complete
	python benchmarks/bench.py $(SHAPE)

# a tool that cannot be installed here is skipped, with the reason
tools: .venv/complete $(TOOLS)/transformers/complete
	-$(MAKE) $(TOOLS)/vllm/complete
	-$(MAKE) $(TOOLS)/llama.cpp/complete
	TOOLS=$(abspath $(TOOLS)) CHECKPOINTS='$(CHECKPOINTS)' pytest -rs tests/tools

# what vLLM asks for beside torch for images and sound fits no CPU build of torch
$(TOOLS)/%/complete: tests/tools/%.txt
	$(PYTHON) -m venv $(@D)
	CMAKE_ARGS=-DGGML_NATIVE=OFF CMAKE_BUILD_PARALLEL_LEVEL=2 \
	    $(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean-method: export METHOD := $(METHOD)
clean-method:
	@printf '%s\n' "$$METHOD" | grep -Eqx '[A-Za-z0-9][A-Za-z0-9._-]*' || { echo 'make clean-method METHOD=NAME'; exit 2; }
	@case "$$METHOD" in original|calibration|datasets|check_mse|analysis) echo "$$METHOD is no method"; exit 2;; esac
	rm -rf -- $(filter-out $(NO_MODELS),$(wildcard results/*/$(METHOD)))
	rm -rf -- results/logs/*/*/"$$METHOD" results/logs/*/*/"$$METHOD".*
	rm -rf -- results/benchmarks/*/*/"$$METHOD" results/benchmarks/*/*/"$$METHOD".tsv

# pip-audit in an environment of its own; nothing fails where the index or the advisories cannot be reached
audit:
	-$(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit==2.10.1 && \
	    .audit/bin/pip-audit --no-deps --disable-pip --requirement requirements.txt --progress-spinner off --timeout 15

# the environment is whole once `complete` is there
.venv/complete: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --requirement requirements.txt
	touch $@

# rewrites the lock; a local build tag of torch is no version that others can install
lock: .venv/complete
	python -m pip install --quiet pip-tools
	pip-compile --quiet --no-header --no-emit-index-url --no-emit-find-links --strip-extras --annotation-style line \
	    --output-file requirements.txt requirements.in
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements.txt
