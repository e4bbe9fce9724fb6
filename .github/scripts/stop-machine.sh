#!/usr/bin/env bash
# Delete the machine $MACHINE and its firewall rules, as far as they are still there.
set -euo pipefail
gcloud compute instances list --filter="name=$MACHINE" --format="value(name,zone.basename())" |
  while read -r name zone; do
    gcloud compute instances delete "$name" --zone="$zone" --quiet < /dev/null
  done
gcloud compute firewall-rules list --filter="name~^$MACHINE-(in|e)gress\$" --format="value(name)" |
  while read -r rule; do
    gcloud compute firewall-rules delete "$rule" --quiet < /dev/null
  done
