# Gristmill. `make help` lists what can be done.

##
##  DATASET  an id (pipeline/conf/datasets/), or the path of such a YAML file
##  MODEL    an id (pipeline/conf/models/), a local directory, or a hub repository
##  RECIPE   an id (pipeline/conf/recipes/)
##  PROFILE  a site (slurm/profiles/); by itself the one that names this cluster, else default or local
##  NAME     what to call the run
##  NAMES    of the runs to compare, as in NAMES="nih try2"
##  FILE     a corpus, file or folder, that is already here
##  ARGS     more words for the command line, as in ARGS="train.lr=3e-4 tokenize.tasks=16"
##  RUNS     the folder of all that is produced
##  PYTHON   the interpreter to use as it is, instead of .venv
##  TORCH    the build of torch to install: cpu, cu126, ...

.DEFAULT_GOAL := help
.PHONY: pipeline fetch plan status logs cancel report compare export clean demo test test-fast \
	cluster-up cluster-down bench-data bench-train bench-score lint format help

# What is run is said in the command itself: a NAME, FILE or MODEL that happens to be exported was
# not meant for us (WSL exports NAME), and ours is not meant for the jobs.
what := DATASET MODEL RECIPE NAME NAMES FILE ARGS
$(foreach v,$(what),$(if $(filter environment,$(origin $v)),$(eval $v :=)))
unexport $(what) MAKEFLAGS
export PYTHON TORCH

# Values reach the program as typed, whatever quotes, spaces or dollars are in them.
quote = '$(subst ','\'',$1)'
flag = $(if $(value $2),--$1=$(call quote,$(value $2)))
words = $(foreach word,$(value ARGS),$(call quote,$(word)))
newest = $(call flag,dataset,DATASET)
named = $(if $(value DATASET)$(value NAME),,$(error which run? As in: make $@ DATASET=nih))$(newest)
corpus = $(if $(value DATASET),,$(error which DATASET? As in: make $@ DATASET=nih))$(call flag,dataset,DATASET)
options = $(call flag,model,MODEL) $(call flag,recipe,RECIPE) $(call flag,profile,PROFILE) \
	$(call flag,name,NAME) $(call flag,file,FILE) $(call flag,root,RUNS) $(words)

# a misspelt variable would be passed over in silence
known = $(what) PROFILE RUNS PYTHON TORCH SHELL MAKEFLAGS
typed = $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
$(foreach v,$(filter-out $(known),$(typed)),$(error what is $v=? There are $(what) PROFILE RUNS PYTHON TORCH))

python = python=$$(sh env/bootstrap.sh $1) && exec "$$python"
jobs = $(call python,product) -m jobs

pipeline: ## Do what is still to do for DATASET, all five stages
	@$(jobs) submit $(corpus) $(options)

fetch: ## Only download corpus and model, to carry them to a cluster without internet
	@$(jobs) fetch $(corpus) $(options)

plan: ## Show what pipeline would do, and change nothing
	@$(jobs) plan $(corpus) $(options)

status: ## Show how far the newest run is, of DATASET or of all
	@$(jobs) status $(newest) $(options)

logs: ## Show the ends of its logs; ARGS=-f follows them
	@$(jobs) logs $(newest) $(options)

cancel: ## Take the jobs of NAME, or of the newest run of DATASET, out of the queue; nothing is lost
	@$(jobs) cancel $(named) $(options)

report: ## Make its report from what is there, also while it is running, and show it
	@$(jobs) report $(newest) $(options)

runs = $(if $(value NAMES),,$(error which NAMES? As in: make compare NAMES="nih try2"))$(foreach \
	name,$(value NAMES),$(call quote,$(name)))

compare: ## Put the runs in NAMES side by side: settings, curves, scores, cost
	@$(jobs) compare $(call flag,profile,PROFILE) $(call flag,root,RUNS) -- $(runs)

export: ## Write what it has trained as a model anybody can load; ARGS=--to=DIR says where
	@$(jobs) export $(newest) $(options)

clean: ## Remove leftovers, data of DATASET that no run names, and chunks that none keeps
	@$(jobs) clean $(corpus) $(options)

fixed = $(if $(value DATASET)$(value MODEL)$(value RECIPE)$(value FILE),$(error make demo is one \
	fixed run; for another: make pipeline DATASET=demo MODEL=...))

demo: ## Run the whole pipeline here on a small corpus: no cluster, no account
	@$(fixed)$(call python,product demo) -m jobs submit --dataset=demo --model=smollm2-135m --recipe=demo \
		--profile=local $(call flag,name,NAME) $(call flag,root,RUNS) $(words)

test test-fast: export OMP_NUM_THREADS = 1

# For two cores: one worker that mostly waits for the test cluster, and two that compute.
spread = -n 3

test: ## Run all tests
	@$(call python,product dev demo) -m pytest $(spread) $(words)

test-fast: ## Run the tests that need no cluster, no model and little time
	@$(call python,product dev) -m pytest $(spread) -m "not slow and not slurm and not model" $(words)

cluster-up: ## Start the test cluster, a real SLURM of two nodes on this host
	@tests/cluster/up.sh

cluster-down: ## Stop the test cluster and its jobs
	@tests/cluster/down.sh $(words)

bench-data: ## Measure tokenizing beside its peers (bench/README.md); ARGS=--quick tries it
	@$(call python,product) -m bench.data $(words)

bench-train: ## Measure training beside its peers (bench/README.md); ARGS=--quick tries it
	@$(call python,product demo) -m bench.train $(words)

bench-score: ## Measure scoring beside a plain loop (bench/README.md); ARGS=--quick tries it
	@$(call python,product demo) -m bench.scoring $(words)

scripts = .ci/run $(wildcard env/*.sh tests/cluster/*.sh slurm/*.sh slurm/*.sbatch)

lint: ## Check style and types, and the shell scripts where there is a shellcheck
	@python=$$(sh env/bootstrap.sh product dev) && "$$python" -m ruff check . && \
		"$$python" -m ruff format --check . && "$$python" -m mypy && \
		{ ! command -v shellcheck >/dev/null || exec shellcheck $(scripts); }

format: ## Rewrite the code in the project's style
	@python=$$(sh env/bootstrap.sh product dev) && "$$python" -m ruff check --fix . && \
		exec "$$python" -m ruff format .

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s%s\n", $$1, $$2} \
		/^##/ {notes = notes substr($$0, 3) "\n"} END {printf "%s", notes}' Makefile
