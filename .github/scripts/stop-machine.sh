#!/usr/bin/env bash
# Delete the machines of the run $GITHUB_RUN_ID and their firewall rules, as far as they are still there: those of all its
# attempts, since a job that is run again by itself has another number than the one that started the machine.
set -euo pipefail
machines="petals-$GITHUB_RUN_ID-[0-9]+"
gcloud compute instances list --filter="name~^$machines\$" --format="value(name,zone.basename())" |
  while read -r name zone; do
    gcloud compute instances delete "$name" --zone="$zone" --quiet < /dev/null
  done
gcloud compute firewall-rules list --filter="name~^$machines-(in|e)gress\$" --format="value(name)" |
  while read -r rule; do
    gcloud compute firewall-rules delete "$rule" --quiet < /dev/null
  done
