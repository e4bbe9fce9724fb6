#!/usr/bin/env bash
# Write the report of what HEAD did since it left BASE. Usage: BASE=commit HEAD=commit report.sh OUTPUT
set -euo pipefail
since=$(git merge-base "$BASE" "$HEAD")
python -m petals.report "$since" "$HEAD" > "$1"
