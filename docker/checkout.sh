#!/usr/bin/env bash
# Make a repository that holds the commit that is checked out in another, and nothing else of that one.
# Usage: checkout.sh REPOSITORY TARGET
set -euo pipefail
if ! git -C "$1" rev-parse --quiet --verify HEAD > /dev/null 2>&1; then
  echo "$1 is no clone with a commit: build the image from the root of a clone, not of a worktree" >&2
  exit 1
fi
git init --quiet --initial-branch=main "$2"
git -C "$2" fetch --quiet --depth=1 --no-tags "file://$(realpath "$1")" HEAD
git -C "$2" reset --quiet --hard FETCH_HEAD
rm "$2/.git/FETCH_HEAD" # it names where the commit came from
