#!/usr/bin/env bash
# Install CML and nothing younger: its dependencies are taken as they were when this version came out, and no install
# script runs. A version on npm cannot be replaced, which the binary that iterative/setup-cml downloads can.
set -euo pipefail
npm install --global --ignore-scripts --no-audit --no-fund --before=2024-12-31 @dvcorg/cml@0.20.6
