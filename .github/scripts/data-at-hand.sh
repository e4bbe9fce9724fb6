#!/usr/bin/env bash
# Write here=true to $GITHUB_OUTPUT where the data and weights of params.yaml are in git, or can be pulled with no account.
# Else write here=false, with a notice: what needs that data is then skipped, as nobody could mend it in a change.
set -euo pipefail
make .venv/.installed
export PATH="$PWD/.venv/bin:$PATH"
knob() { python -c "from petals import params; print(params.load_params(params.$1).$2)"; }
data=$(knob PipelineParams data)
weights=$(knob TrainParams pretrained)
inputs=("$data")
[[ $weights == *.safetensors ]] && inputs+=("data/weights/$weights")
here=true
for input in "${inputs[@]}"; do
  if ! git ls-files --error-unmatch -- "$input" > /dev/null 2>&1 && ! timeout 600 dvc pull --quiet "$input"; then
    here=false
    echo "::notice title=Skipped::$input is neither in git nor can it be pulled without an account"
  fi
done
echo "here=$here" >> "$GITHUB_OUTPUT"
