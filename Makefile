# make report   the whole study → results/report.html: on the embedded default, or on yours, with MODEL=… TEXT=…
# make best     the best checkpoint that deploys → results/best/; MODEL=… TEXT=… SIZE_MB=… or BITS=…; a page that is
#               there takes it in
#               MODEL  a model's directory, a GGUF file, OWNER/NAME[@REVISION] of a hub, or a name in config.yaml
#               TEXT   a UTF-8 file of the kind of text that the model is for
#               SIZE_MB, BITS   limits: of the whole checkpoint; of a weight, where BITS=4 is codes of 4 bits with scales
#               FILE=gguf   a GGUF file for llama.cpp, in place of a checkpoint for transformers and vLLM
#               IN     a folder for this study and its results alone; given again by itself, the study goes on
#               What they say is written to results/NAME.yaml (IN: to its config.yaml), to be read and gone on with.
# make plan     before anything large runs: what `make report` with the same variables will take on this machine
# make test     every test but the slow ones; make test-slow: those
# make check    format, lint, types, and a dry run of every experiment
# make bench    time and memory of every step beside its limit, on a random model → results/bench/
#               SHAPE  minicpm-2b, llama-3-8b, llama-3-70b, qwen3-30b-a3b or small; DEPTH  blocks, if not all
# make tools    packed checkpoints and exports in other tools, each in an environment of its own under TOOLS (some GB):
#               transformers alone, vLLM, llama.cpp; CHECKPOINTS='A/checkpoint …' tries those instead of random ones
# make schema   the schema's recipes, config.yaml's words and docs/keys.md, from quant/recipe/keys.py
# make dependents   after imports changed: whose jobs an edit of each module makes again (tests/unit/workflow/dependents.txt)
# make clean-method METHOD=NAME   forgets one method, of every model: its results, logs and benchmarks, budgets that were made of
#               it, and the tables, page and choice that it is in (IN: of that folder); the next command makes them anew
# make audit    what is known against the pinned packages (needs a network; a report, no check)
# CORES=n limits the cores, PYTHON=… names the interpreter (3.11 or newer) that .venv is made from.

PYTHON ?= python3
CORES ?= all
TOOLS ?= .tools
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# folders of results/ that are no model's
NO_MODELS = results/logs/*|results/benchmarks/*|results/figures/*|results/sources/*|results/best/*|results/environments/*
# what summarize makes of all methods' evaluations and errors
OF_EVALUATIONS = $(patsubst %,results/%.csv,summary comparisons linears rounding_stats learnt profiles contrasts)

# given on make's command line, or nothing: variables of such names may stand in anybody's environment
MODEL =
TEXT =
SIZE_MB =
BITS =
FILE =
IN =
export MODEL TEXT SIZE_MB BITS FILE IN

.PHONY: report best plan test test-slow check lint dry-run schema dependents bench tools lock clean-method audit

# a misspelt one would be passed over, and the study run with what was not meant
OTHERS = $(filter-out MODEL TEXT SIZE_MB BITS FILE IN CORES PYTHON,$(foreach name,$(.VARIABLES),$(if \
    $(filter command,$(firstword $(origin $(name)))),$(name))))

report: TARGET = results/report.html
best: TARGET = results/best/choice.json $$page
plan: TARGET = results/plan.txt
report best plan: .venv/complete
	$(if $(OTHERS),$(error $(firstword $(OTHERS)): no such variable; `make $@` takes MODEL, TEXT, SIZE_MB, BITS, FILE, IN, CORES and PYTHON))
	@own=$$(PYTHONPATH=workflow_scripts python -m quant.workflow.make_study) || exit 1; \
	page=results/report.html; \
	if [ -n "$$IN" ]; then set -- --directory "$$(dirname "$$own")"; page=$$(dirname "$$own")/$$page; \
	elif [ -n "$$own" ]; then set -- --configfile "$$own"; fi; \
	[ -f "$$page" ] && page=results/report.html || page=; \
	set -x; snakemake --cores $(CORES) "$$@" $(TARGET)

test: .venv/complete
	pytest -n 2 --dist loadscope --no-loadscope-reorder -m 'not slow'

test-slow: .venv/complete
	pytest -n 2 --dist loadscope --no-loadscope-reorder -m slow

check: lint dry-run

lint: .venv/complete
	ruff format --check .
	ruff check .
	snakefmt --check Snakefile rules
	mypy

dry-run: .venv/complete
	snakemake --lint
	for overlay in experiments/*.yaml; do \
	    snakemake --configfile $$overlay --cores 1 --dry-run --quiet all --resources gpu=1 results/report.html || exit 1; \
	done

schema: .venv/complete
	PYTHONPATH=workflow_scripts python -m quant.workflow.recipe_schema

dependents: .venv/complete
	PYTHONPATH=workflow_scripts python -m tests.unit.workflow.dependents

bench: .venv/complete
	python benchmarks/bench.py $(SHAPE) $(if $(DEPTH),--depth $(DEPTH))

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

# what is made of a method goes with it: Snakemake asks for no lost file whose readers' results stand
clean-method: export METHOD := $(METHOD)
clean-method:
	@printf '%s\n' "$$METHOD" | grep -Eqx '[A-Za-z0-9][A-Za-z0-9._-]*' || { echo 'make clean-method METHOD=NAME'; exit 2; }
	@case "$$METHOD" in original|calibration|datasets|check_mse|analysis) echo "$$METHOD is no method"; exit 2;; esac
	@cd "$${IN:-.}" && found= && \
	forget() { for each; do [ ! -e "$$each" ] || { rm -rf -- "$$each" && found=yes; }; done; } && \
	budgets=$$(for record in results/*/*/quantize.json results/*/*/widths.json; do \
	    [ ! -f "$$record" ] || ! sed -n '/"candidates": {/,/}/p' "$$record" | grep -Fq "\"$$METHOD\":" || echo "$$record"; \
	done | cut -d/ -f3 | sort -u) && \
	for name in "$$METHOD" $$budgets; do \
	    for own in results/*/"$$name"; do \
	        case "$$own" in $(NO_MODELS)) continue;; esac; \
	        [ -d "$$own" ] || continue; \
	        [ ! -d "$$own/evaluation" ] || forget $(OF_EVALUATIONS) "$${own%/*}/check_mse/methods.csv"; \
	        [ ! -d "$$own/sensitivity" ] || forget results/sensitivity.csv; \
	        [ ! -d "$$own/tasks" ] || forget results/tasks.csv results/task_pairs.csv; \
	        [ ! -e "$$own/words.json" ] || forget results/words.csv results/words.json; \
	        forget "$$own" results/comparison_results.json results/report.html results/best/choice.json; \
	    done; \
	    forget results/logs/*/*/"$$name" results/logs/*/*/"$$name".log results/logs/*/*/"$$name".gpu.json \
	        results/benchmarks/*/*/"$$name" results/benchmarks/*/*/"$$name".tsv; \
	done && \
	if [ "$$found" ]; then echo forgotten: "$$METHOD" $$budgets; \
	else echo "$$METHOD: nothing of it in $${IN:-.}/results"; exit 1; fi

# pip-audit in an environment of its own; nothing fails where the index or the advisories cannot be reached
audit:
	-$(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit==2.10.1 && \
	    .audit/bin/pip-audit --no-deps --disable-pip --requirement requirements.txt --progress-spinner off --timeout 15

# the environment is whole once `complete` is there. Its command snakemake is envs/launcher.py below the first lines of
# pip's, which name the interpreter
.venv/complete: requirements.txt envs/launcher.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --quiet --requirement requirements.txt
	sed -n -e '/^\(import\|from\|"""\|# -\)/q' -e p .venv/bin/snakemake > .venv/launcher
	cat envs/launcher.py >> .venv/launcher
	chmod +x .venv/launcher && mv .venv/launcher .venv/bin/snakemake
	touch $@

# rewrites the lock; a local build tag of torch is no version that others can install
lock: .venv/complete
	python -m pip install --quiet pip-tools
	pip-compile --quiet --no-header --no-emit-index-url --no-emit-find-links --strip-extras --annotation-style line \
	    --output-file requirements.txt requirements.in
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements.txt
