#!/usr/bin/env bash
# Run a command in a copy of the repository that the image holds. The copy is $PETALS_WORKSPACE/petals, which can be
# written to; where it is there already, what was interrupted goes on. Usage: train.sh COMMAND [ARGUMENT...]
set -euo pipefail
copy=$PETALS_WORKSPACE/petals # not the volume's root, which may be another user's, where Git refuses to work
if [[ ! -d $copy ]]; then
  rm -rf "$copy.partial"
  cp -R "$PETALS_REPOSITORY" "$copy.partial"
  git -C "$copy.partial" config user.name petals # dvc exp run commits
  git -C "$copy.partial" config user.email petals@localhost
  mv "$copy.partial" "$copy"
fi
cd "$copy"
python -m petals.recovery
exec "$@"
