# Everything runs in .venv, which is built once, from pyproject.toml and constraints.txt.
# In an activated conda environment made from environment.yml, that one is used and nothing is built.
PYTHON  = python3
PROFILE = quick
DATASET = synthetic
DEVICE  =
# "published" takes the networks of the published run instead of training
WEIGHTS =
# paper (00-06b), lenses (07-14), systems (15-18) or practice (19-22); all of them by default
PART    =
THREADS =
SWEEP   = workflow/sweep.toml
WORKFLOW = local
# "1" lets `make verify` do everything
FULL    =
# the commit that `make yardstick` compares with, and where both runs live
BASE    = cfab1e5
YARD    = data/derived/yardstick
# more words for gpu-bundle, such as --limit-mib 200 or --wheels-for 3.12 --have numpy scipy
BUNDLE  =

ifeq ($(CONDA_DEFAULT_ENV),harvis)
PY  = python
ENV =
else
PY  = .venv/bin/python
ENV = .venv/.complete
endif
# an environment that was moved points to where it was made; the shell compares, as a folder's name may hold anything
MOVED = $(shell [ "$$(cat .venv/.complete 2>/dev/null)" = "$$(pwd -P)" ] || echo moved)

CHAIN = $(PY) -m harvis_utils.chain
PAGES = $(PY) -m workflow.pages
RUN   = --profile $(PROFILE) --dataset $(DATASET)
# the chain in another folder than this one, which "$$here" names, with the data that are here
HERE      = here="$$(pwd -P)"; mkdir -p data/raw; data="$$(cd "$${HARVIS_DATA:-data/raw}" && pwd -P)" || exit
REPRODUCE = HARVIS_DATA="$$data" $(if $(findstring /,$(PY)),"$$here"/)$(PY) \
	-m harvis_utils.chain reproduce $(RUN) $(if $(DEVICE),--device $(DEVICE))
export HARVIS_THREADS := $(or $(THREADS),$(HARVIS_THREADS))
# idle OpenMP threads sleep instead of spinning: beside other work, spinning costs a factor of ten
export OMP_WAIT_POLICY := $(or $(OMP_WAIT_POLICY),PASSIVE)
# glibc gives memory above 128 KiB back at every free; fetching it again cost a sixth of the training time
export MALLOC_MMAP_THRESHOLD_ := $(or $(MALLOC_MMAP_THRESHOLD_),1073741824)
export MALLOC_TRIM_THRESHOLD_ := $(or $(MALLOC_TRIM_THRESHOLD_),4294967296)

.DEFAULT_GOAL := help
.PHONY: help reproduce sweep test test-long test-mutations minutes verify yardstick bench lab report publish gpu-bundle clean moved

help: ## show this list
	@echo "Targets (PROFILE=quick|desk|paper, DATASET=synthetic|dsads|mhealth|..., PART=paper|lenses|systems|practice, DEVICE=cpu|cuda, THREADS=n, WEIGHTS=published):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r t d; do printf '  make %-10s %s\n' "$$t" "$$d"; done

reproduce: $(ENV) ## execute all notebooks that are not up to date, then show where the results are
	@$(CHAIN) reproduce $(RUN) $(if $(DEVICE),--device $(DEVICE)) $(if $(WEIGHTS),--weights $(WEIGHTS)) \
		$(if $(PART),--part $(PART)); code=$$?; \
	case $$code in 0|3) $(PAGES) $(RUN) || exit;; esac; exit $$code

sweep: $(ENV) ## many networks as many jobs (SWEEP=file.toml, WORKFLOW=local|slurm), then one table of them
	@$(PY) -m workflow.sweep start $(SWEEP) --workflow-profile $(WORKFLOW)

test: $(ENV) ## lint, unit tests (COV=1: with coverage, nearly twice as long), and every notebook in the quick profile
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m nbstripout --verify notebooks/*.ipynb
	$(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(if $(COV),--cov --cov-report=term)
	@root=$$(mktemp -d) && trap 'rm -rf "$$root"' EXIT && \
	echo "all notebooks, two at once, in an empty root" && \
	HARVIS_ARTIFACTS="$$root/derived" HARVIS_REPORTS="$$root/reports" JUPYTER_PREFER_ENV_PATH=1 \
	$(PY) -m pytest -q -n 2 --dist loadfile --nbval-lax --nbval-current-env notebooks/*.ipynb

minutes: $(ENV) ## where the minutes of a finished run went, notebook by notebook
	@$(PY) -m workflow.minutes $(RUN)

test-long: $(ENV) ## every write made to fail, files mutated, each notebook alone and twice, runs killed in every stage and notebook; goes on where it was interrupted
	$(PY) -m pytest -v -n 2 --dist loadfile tests/long --deselect tests/long/test_mutations.py

test-mutations: $(ENV) ## wrong numbers put into the package one at a time: the tests must notice each
	$(PY) -m pytest -v tests/long/test_mutations.py

verify: $(ENV) ## published runs against their digests, and computed again from their weights and signals (FULL=1: all units)
	@$(PY) -m workflow.verify $(if $(filter-out file,$(origin PROFILE)),--profile $(PROFILE)) \
		$(if $(filter-out file,$(origin DATASET)),--dataset $(DATASET)) $(if $(FULL),--full)

yardstick: $(ENV) $(YARD)/$(BASE)/.$(PROFILE)-$(DATASET) ## run the chain anew and compare every number with those of a commit (BASE=commit)
	@rm -rf $(YARD)/current
	@$(HERE); PYTHONPATH="$$here" HARVIS_ARTIFACTS=$(YARD)/current/derived HARVIS_REPORTS=$(YARD)/current/reports $(REPRODUCE)
	@$(PY) -m workflow.yardstick $(addsuffix /reports/$(PROFILE)/$(DATASET),$(YARD)/$(BASE) $(YARD)/current) \
	--stores $(YARD)/$(BASE)/data/derived/store $(YARD)/current/derived/store

# the reference: that commit's own package in a worktree of its own, run once and kept
$(YARD)/$(BASE)/.$(PROFILE)-$(DATASET): | $(ENV)
	@git worktree prune
	@test -d $(YARD)/$(BASE) || git worktree add --quiet --detach $(YARD)/$(BASE) $(BASE)
	@$(HERE); cd $(YARD)/$(BASE) && PYTHONPATH="$$(pwd -P)" HARVIS_ARTIFACTS= HARVIS_REPORTS= $(REPRODUCE)
	@touch $@

bench: $(ENV) ## our engine beside what others would use; tables for README.md
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(PY) -m benchmarks $(RUN) $(if $(DEVICE),--device $(DEVICE))
	@$(PY) -m benchmarks.generators
	@$(PY) -m workflow.readme

lab: $(ENV) ## open JupyterLab on the notebooks
	@[ "$$(id -u)" != 0 ] || echo "you are root, as in most containers: JupyterLab is started with --allow-root" >&2
	$(PY) -m jupyterlab notebooks $$([ "$$(id -u)" != 0 ] || echo --allow-root)

report: $(ENV) ## executed notebooks as HTML, and reports/index.html
	@$(PAGES)

publish: $(ENV) ## copy a finished run, without HTML, to reports/published/, and its numbers into README.md
	@$(PY) -m workflow.publish $(RUN)
	@$(PY) -m workflow.readme

gpu-bundle: $(ENV) ## pack what a bare CUDA machine needs to compute a run; the file says how to go on
	@$(PY) -m workflow.gpu pack $(RUN) $(BUNDLE)

clean: $(ENV) ## remove what runs have made (not raw data, not published results, not .venv)
	@$(CHAIN) clean

.venv/.complete: pyproject.toml constraints.txt $(MOVED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo 'not there')." \
	"Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "building .venv, once; this takes some minutes"
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@if command -v uv >/dev/null; then uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[test]'; \
	else .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'; fi
	@pwd -P > $@
