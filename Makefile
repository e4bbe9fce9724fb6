# `make` lists the targets. PYTHON chooses the interpreter that makes .venv: make repro PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# Not the default: macOS's make 3.81 starts simple lines without a shell, and then finds nothing on the PATH set here.
SHELL := /bin/bash
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONUTF8 := 1
MD5 = python -c 'import hashlib, sys; print(hashlib.md5(open(sys.argv[1], "rb").read()).hexdigest())'
RESULTS = params.yaml dvc.lock machine.json metrics plots
# The commit, where what is served is the model that it names.
REVISION = test -f models/model.onnx && git diff --quiet HEAD -- dvc.lock && test -z "$$PETALS_MODEL" && \
	grep -q "$$($(MD5) models/model.onnx)" dvc.lock && git rev-parse HEAD

.DEFAULT_GOAL := help
.PHONY: help repro undo pull push bucket bucket-stop serve rollback record verify soak load bench bench-scale profile test fuzz lint format

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

repro: $(STAMP)  ## run the pipeline on data/sample, or what params.yaml names, and print the scores
	@python -m petals.recovery
	@dvc repro
	@python -m petals.summary

# DVC may write a file so that git takes it for unchanged; touched, git looks at what is in it.
undo: $(STAMP)  ## take back what ran since the last commit: settings, scores and models
	@git ls-tree -rz --name-only HEAD -- $(RESULTS) | xargs -0 sh -c 'touch -c "$$@" && git restore --source=HEAD --staged --worktree -- "$$@"' undo
	@dvc checkout || { echo "make repro makes again what the cache does not have"; exit 1; }

record: $(STAMP)  ## note in machine.json on which machine dvc.lock was made
	@python -m petals.machine --record

verify: $(STAMP)  ## run HEAD in a clean clone and compare every output with dvc.lock
	@python -m petals.verify

soak: $(STAMP)  ## kill the pipeline 30 times and compare every byte with an uninterrupted run
	@python -m benchmarks.soak

load: $(STAMP)  ## load the service with 1, 8 and 64 clients on this machine, and print a table
	@python -m benchmarks.load

bench: $(STAMP)  ## measure each stage against what the machine can do: make bench ONLY=train for one row
	@python -m benchmarks.bench $(if $(ONLY),--only $(ONLY))

bench-scale: $(STAMP)  ## see time and memory grow with the data: make bench-scale SIZES=0.02,0.05 for small ones
	@python -m benchmarks.growth $(if $(SIZES),--sizes $(SIZES))

profile: $(STAMP)  ## a picture of where a stage spends its time: make profile STAGE=train
	@python -m benchmarks.profiling $(STAGE)

pull: $(STAMP)  ## bring data and models from the remote
	@python -m petals.remote pull

push: $(STAMP)  ## send data and models to the remote
	@python -m petals.remote push

bucket: $(STAMP)  ## try pull and push with a bucket on this machine and no account: make bucket PORT=4443
	@python -m petals.bucket start $(if $(PORT),--port $(PORT))

bucket-stop: $(STAMP)  ## end it, and point at the real remote again
	@python -m petals.bucket stop

serve: $(STAMP)  ## serve the model of the last run on this machine: make serve PORT=8000
	@PETALS_REVISION=$${PETALS_REVISION-$$({ $(REVISION); } 2>/dev/null)} python -m serving $(if $(PORT),--port $(PORT))

rollback:  ## give production's traffic back to the revision that had it before
	@.github/scripts/traffic.sh to previous

test: $(STAMP)  ## run the tests, with line coverage
	@python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term

fuzz: $(STAMP)  ## damage TFRecords in 20,000 ways and read them
	@PYTHONPATH=. python tests/fuzz_tfrecord.py

lint: $(STAMP)  ## check style, shell scripts, Dockerfiles and workflows
	@ruff check .
	@ruff format --check .
	@shellcheck .ci/run .ci/tools .github/scripts/*.sh cloud/*.sh docker/*.sh
	@hadolint Dockerfile docker/release.Dockerfile
	@check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@check-jsonschema --quiet --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	@check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@check-jsonschema --quiet --schemafile cloud/vertex-job.schema.json cloud/vertex-job.yaml
	@zizmor --quiet --persona pedantic --offline --strict-collection .github
	@.github/scripts/actionlint.sh

format: $(STAMP)  ## fix style
	@ruff check --fix .
	@ruff format .

# Installed once; again when what is asked for changes.
$(STAMP): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "petals needs Python 3.11 to 3.14: make PYTHON=/path/to/python3.14" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module: install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@
