#!/usr/bin/env bash
# Start the machine with a GPU that is to take this run's training job; it is removed after one job, or after ten
# minutes without one. Its service account reaches buckets alone. But CML also puts two things onto it that
# training code can reach: the signed-in account's right, for an hour, to remove the machine, which is a right to
# all machines of the project; and CML_TOKEN, with which it registers as a runner.
set -euo pipefail
cml runner launch --cloud=gcp --cloud-region="$ZONE" --cloud-type="$MACHINE_TYPE" --cloud-gpu="$GPU" \
  --cloud-image="$IMAGE" --cloud-hdd-size=200 --cloud-permission-set="$TRAINING_ACCOUNT,scopes=storage-rw" \
  --name="$MACHINE" --labels="$MACHINE" --single --idle-timeout=600
