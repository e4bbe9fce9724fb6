#!/usr/bin/env bash
# Put the service together: the code it runs, compiled, once it is proven that it starts without PyTorch.
# Usage: serve.sh REPOSITORY ENVIRONMENT TARGET
set -euo pipefail
python=$(realpath --no-symlinks "$2/bin/python")
mkdir -p "$3"
cp -R "$1/petals" "$1/serving" "$3"
chmod -R a+rX "$3" # the clone may be closed to others, and the service is none of its group
cd "$3"
if "$python" -c "import torch" 2> /dev/null; then
  echo "PyTorch is installed in $2: something in serving/requirements.txt brings it" >&2
  exit 1
fi
"$python" -m serving --help > /dev/null
"$python" -m compileall -q petals serving
