#!/usr/bin/env bash
# Delete the machines of the run $GITHUB_RUN_ID and their firewall rules, as far as they are still there: those of all its
# attempts, since a job that is run again by itself has another number than the one that started the machine. What fails
# stops nothing else, but fails the script.
set -uo pipefail
machines="petals-$GITHUB_RUN_ID-[0-9]+" failed=0
found=$(gcloud compute instances list --filter="name~\"^$machines\$\"" --format="value(name,zone.basename())") || failed=1
while read -r name zone; do
  [[ -z $name ]] || gcloud compute instances delete "$name" --zone="$zone" --quiet < /dev/null || failed=1
done <<< "$found"
found=$(gcloud compute firewall-rules list --filter="name~\"^$machines-(in|e)gress\$\"" --format="value(name)") || failed=1
while read -r rule; do
  [[ -z $rule ]] || gcloud compute firewall-rules delete "$rule" --quiet < /dev/null || failed=1
done <<< "$found"
exit "$failed"
