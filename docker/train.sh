#!/usr/bin/env bash
# Run a command in a copy of the repository that the image holds. The copy is in $PETALS_WORKSPACE, which can be
# written to; where it is there already, what was interrupted goes on. Usage: train.sh COMMAND [ARGUMENT...]
set -euo pipefail
cd "$PETALS_WORKSPACE"
if [[ ! -d .git ]]; then
  cp -R "$PETALS_REPOSITORY/." .
  git config user.name petals # dvc exp run commits
  git config user.email petals@localhost
fi
python -m petals.recovery
exec "$@"
