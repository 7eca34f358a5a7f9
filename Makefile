# Gristmill. `make help` lists the commands.

##
##  DATASET  an id (pipeline/conf/datasets/), or the path of a YAML file
##  MODEL    an id (pipeline/conf/models/), a local folder, or a hub repository
##  RECIPE   an id (pipeline/conf/recipes/), or the path of a YAML file
##  PROFILE  a site (slurm/profiles/) or a YAML file; local: run here; default: this cluster's own
##  NAME     the name of the run
##  NAMES    the runs to compare, e.g. NAMES="nih try2"
##  FILE     a local copy of the corpus, file or folder
##  ARGS     settings and options, e.g. ARGS="train.lr=3e-4 tokenize.tasks=16"
##  RUNS     the folder for everything that is produced; default: the profile's root, else ./runs
##  PYTHON   an interpreter to use instead of .venv
##  TORCH    the build of torch to install: cpu, cu126, ...

.DEFAULT_GOAL := help
.PHONY: pipeline fetch plan status logs cancel report compare export clean demo test test-fast test-all \
	cluster-up cluster-down bench-data bench-train bench-score lint format help

# These come from the command line only: the environment's are ignored (WSL exports NAME), and they
# are not exported to jobs.
run_variables := DATASET MODEL RECIPE NAME NAMES FILE ARGS
$(foreach v,$(run_variables),$(if $(filter environment,$(origin $v)),$(eval $v :=)))
unexport $(run_variables) MAKEFLAGS
export PYTHON TORCH

# Values reach the program exactly as typed, with any quotes, spaces or dollars.
quote = '$(subst ','\'',$1)'
flag = $(if $(value $2),--$1=$(call quote,$(value $2)))
quoted_args = $(foreach word,$(value ARGS),$(call quote,$(word)))
dataset_flag = $(call flag,dataset,DATASET)
require_dataset_or_name = $(if $(value DATASET)$(value NAME),,$(error name a run, e.g. make $@ DATASET=nih))$(dataset_flag)
require_dataset = $(if $(value DATASET),,$(error name a data set, e.g. make $@ DATASET=nih))$(call flag,dataset,DATASET)
options = $(call flag,model,MODEL) $(call flag,recipe,RECIPE) $(call flag,profile,PROFILE) \
	$(call flag,name,NAME) $(call flag,file,FILE) $(call flag,root,RUNS) $(quoted_args)

# make itself ignores a misspelt variable
known = $(run_variables) PROFILE RUNS PYTHON TORCH SHELL MAKEFLAGS
typed = $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
$(foreach v,$(filter-out $(known),$(typed)),$(error unknown variable $v=; valid names: $(run_variables) PROFILE RUNS PYTHON TORCH))

python = python=$$(sh env/bootstrap.sh $1) && exec "$$python"
jobs = $(call python,product) -m jobs

pipeline: ## Run all stages for DATASET that are not done yet
	@$(jobs) submit $(require_dataset) $(options)

fetch: ## Only download corpus and model, to copy them to a cluster without internet
	@$(jobs) fetch $(require_dataset) $(options)

plan: ## Show what pipeline would do, and change nothing
	@$(jobs) plan $(require_dataset) $(options)

status: ## Show the progress of the newest run, of DATASET or of all
	@$(jobs) status $(dataset_flag) $(options)

logs: ## Show the end of each log; ARGS=-f follows them
	@$(jobs) logs $(dataset_flag) $(options)

cancel: ## Cancel the jobs of NAME, or of the newest run of DATASET; progress is kept
	@$(jobs) cancel $(require_dataset_or_name) $(options)

report: ## Write and show the report, also of a run in progress
	@$(jobs) report $(dataset_flag) $(options)

runs = $(if $(value NAMES),,$(error name two or more runs, e.g. make compare NAMES="nih try2"))$(foreach \
	name,$(value NAMES),$(call quote,$(name)))

compare: ## Compare the runs in NAMES: settings, curves, scores, cost
	@$(jobs) compare $(call flag,profile,PROFILE) $(call flag,root,RUNS) -- $(runs)

export: ## Write the trained model on its own; ARGS=--to=DIR sets the folder
	@$(jobs) export $(dataset_flag) $(options)

clean: ## Remove leftovers, data of DATASET that no run needs, and chunks that no run keeps
	@$(jobs) clean $(require_dataset) $(options)

refuse_other_data = $(if $(value DATASET)$(value MODEL)$(value RECIPE)$(value FILE),$(error make demo has a \
	fixed data set, model and recipe; for others: make pipeline DATASET=demo MODEL=...))

demo: ## Run the whole pipeline here on a small corpus: no cluster, no account
	@$(refuse_other_data)$(call python,product demo) -m jobs submit --dataset=demo --model=smollm2-135m --recipe=demo \
		--profile=local $(call flag,name,NAME) $(call flag,root,RUNS) $(quoted_args)

test test-fast test-all: export OMP_NUM_THREADS = 1

# For two cores: one worker that mostly waits for the test cluster, and two that compute.
pytest_workers = -n 3

test: ## Run the tests that every change has to pass
	@$(call python,product dev demo) -m pytest $(pytest_workers) -m "not thorough" $(quoted_args)

test-fast: ## Run the tests that need no cluster, no model and little time
	@$(call python,product dev) -m pytest -n 2 \
		-m "not slow and not slurm and not model and not thorough" $(quoted_args)

test-all: export GRISTMILL_THOROUGH = 1
test-all: ## Run all tests: also the whole demo, more model families and more examples
	@$(call python,product dev demo) -m pytest $(pytest_workers) $(quoted_args)

cluster-up: ## Start the test cluster, a real SLURM of two nodes on this host
	@tests/cluster/up.sh

cluster-down: ## Stop the test cluster and its jobs
	@tests/cluster/down.sh $(quoted_args)

bench-data: ## Compare tokenization with other tools (bench/README.md); ARGS=--quick for a short run
	@$(call python,product) -m bench.data $(quoted_args)

bench-train: ## Compare training with other tools (bench/README.md); ARGS=--quick for a short run
	@$(call python,product demo) -m bench.train $(quoted_args)

bench-score: ## Compare scoring with a plain loop (bench/README.md); ARGS=--quick for a short run
	@$(call python,product demo) -m bench.scoring $(quoted_args)

scripts = .ci/run $(wildcard env/*.sh tests/cluster/*.sh slurm/*.sh slurm/*.sbatch)

lint: ## Check style and types, and shell scripts if shellcheck is installed
	@python=$$(sh env/bootstrap.sh product dev) && "$$python" -m ruff check . && \
		"$$python" -m ruff format --check . && "$$python" -m mypy && \
		{ ! command -v shellcheck >/dev/null || exec shellcheck $(scripts); }

format: ## Format the code
	@python=$$(sh env/bootstrap.sh product dev) && "$$python" -m ruff check --fix . && \
		exec "$$python" -m ruff format .

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s%s\n", $$1, $$2} \
		/^##/ {notes = notes substr($$0, 3) "\n"} END {printf "%s", notes}' Makefile
