#!/usr/bin/env bash
# Write here=true to $GITHUB_OUTPUT where the data that params.yaml names is in git, or can be pulled with no account.
# Else write here=false, with a notice: what needs that data is then skipped, as nobody could mend it in a change.
set -euo pipefail
make .venv/.installed
export PATH="$PWD/.venv/bin:$PATH"
data=$(python -c 'from petals import params; print(params.load_params(params.PipelineParams).data)')
here=true
if ! git ls-files --error-unmatch -- "$data" > /dev/null 2>&1 && ! timeout 600 dvc pull --quiet "$data"; then
  here=false
  echo "::notice title=Skipped::$data is neither in git nor can it be pulled without an account"
fi
echo "here=$here" >> "$GITHUB_OUTPUT"
