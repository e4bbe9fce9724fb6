#!/usr/bin/env bash
# Write here=true to $GITHUB_OUTPUT where the data and weights of params.yaml are in git, or can be pulled with no account.
# Where no bucket of one's own is named, or it is not open to everybody, write here=false, with a notice: what needs that
# data is then skipped, as nobody could mend it in a change. Where it is open and does not give the data, fail.
set -euo pipefail
make .venv/.installed
export PATH="$PWD/.venv/bin:$PATH"
knob() { python -c "from petals import params; print(params.load_params(params.$1).$2)"; }
data=$(knob PipelineParams data)
weights=$(knob TrainParams pretrained)
inputs=("$data")
[[ $weights == *.safetensors ]] && inputs+=("data/weights/$weights")
in_git() { git ls-files --error-unmatch -- "$1" > /dev/null 2>&1; }
pulled() {
  local said
  if ! said=$(python -c "from petals import remote; print(remote.check_access())" 2>&1); then
    [[ $said =~ "only stands for"|"not open to you"|"may not list it"|"cannot be used" ]] && return 1
    tail -n 1 <<< "$said" >&2
    exit 1
  fi
  timeout 600 dvc pull "$1" && return
  [[ $said != gs ]] && return 1 # a folder of one's own, say, which no runner has
  echo "::error::$1 cannot be pulled, though the bucket is open to everybody"
  exit 1
}
here=true
for input in "${inputs[@]}"; do
  if ! in_git "$input" && ! pulled "$input"; then
    here=false
    echo "::notice title=Skipped::$input is neither in git nor can it be pulled without an account"
  fi
done
echo "here=$here" >> "$GITHUB_OUTPUT"
