#!/usr/bin/env bash
# Start the machine with a GPU that takes this run's training job. Its service account may read and write
# buckets, and nothing else; it is removed after one job, or after ten minutes without one.
set -euo pipefail
cml runner launch --cloud=gcp --cloud-region="$ZONE" --cloud-type="$MACHINE_TYPE" --cloud-gpu="$GPU" \
  --cloud-image="$IMAGE" --cloud-hdd-size=200 --cloud-permission-set="$TRAINING_ACCOUNT,scopes=storage-rw" \
  --name="$MACHINE" --labels="$MACHINE" --single --idle-timeout=600
