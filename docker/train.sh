#!/usr/bin/env bash
# Run a command in a copy of the repository that the image holds. The copy is $PETALS_WORKSPACE/petals, which can be
# written to; where it is there already, what was interrupted goes on. Usage: train.sh COMMAND [ARGUMENT...]
set -euo pipefail
copy=$PETALS_WORKSPACE/petals # not the volume's root, which may be another user's, where Git refuses to work
commit=$(git -c safe.directory="$PETALS_REPOSITORY" -C "$PETALS_REPOSITORY" rev-parse HEAD)
if [[ ! -d $copy ]]; then
  rm -rf "$copy.partial"
  cp -R "$PETALS_REPOSITORY" "$copy.partial"
  git -C "$copy.partial" config user.name petals # dvc exp run commits
  git -C "$copy.partial" config user.email petals@localhost
  mv "$copy.partial" "$copy"
elif ! git -C "$copy" merge-base --is-ancestor "$commit" HEAD 2> /dev/null; then
  echo "$copy was made from another commit than this image, ${commit::7}: take another volume, or delete this one" >&2
  exit 1
fi
cd "$copy"
rm -f .git/index.lock # no git runs here yet: it is left of one that was killed
python -m petals.recovery
exec "$@"
