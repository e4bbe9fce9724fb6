#!/usr/bin/env bash
# Run one experiment with the settings in $OVERRIDES, which overrides.py has checked, and push what it made.
set -euo pipefail
python -m pip install --quiet -r requirements.txt -c constraints.txt
git config user.name "github-actions[bot]"
git config user.email "41898282+github-actions[bot]@users.noreply.github.com"
# Now, rather than after hours.
if [[ $(python -m petals.machine) =~ gpu\ +none ]]; then
  echo "Error: PyTorch finds no GPU on this machine; its driver may be too old (nvidia-smi says which it is)" >&2
  exit 1
fi
python -m petals.remote check

arguments=()
read -ra words <<< "$OVERRIDES"
for word in "${words[@]}"; do
  arguments+=(--set-param "$word")
done
dvc exp run --pull "${arguments[@]}"
python -m petals.machine --record
# Twice where it must be: what arrives without an answer is sent again, and the account may not overwrite it.
python -m petals.remote push || python -m petals.remote push
python -m petals.summary
