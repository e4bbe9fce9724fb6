#!/usr/bin/env bash
# Make a virtual environment that holds what the requirements ask for and nothing else, not even pip.
# Usage: install.sh ENVIRONMENT REQUIREMENTS CONSTRAINTS
set -euo pipefail
python=$(command -v python) # before there is one in the environment, which may come first on PATH
"$python" -m venv --without-pip "$1"
"$python" -m pip --python "$1/bin/python" install --quiet --requirement "$2" --constraint "$3"
