#!/usr/bin/env bash
# Look at, or move, the traffic of the service $SERVICE on Cloud Run.
#   traffic.sh url TAG   the address of the revision that has this tag
#   traffic.sh to TAG    give that revision all traffic; the one that had it gets the tag `previous`
# So `traffic.sh to previous` goes back, and once more goes forth again.
set -euo pipefail
: "${SERVICE:=petals}" "${REGION:=europe-west1}"
service=$(gcloud run services describe "$SERVICE" --region="$REGION" --format=json)
tagged() { jq --raw-output --arg tag "$2" ".status.traffic[] | select(.tag == \$tag) | .$1" <<< "$service"; }

revision=$(tagged revisionName "$2")
if [[ -z $revision ]]; then
  echo "no revision of $SERVICE in $REGION has the tag $2" >&2
  exit 1
fi
case $1 in
  url)
    tagged url "$2"
    ;;
  to)
    serving=$(jq --raw-output '[.status.traffic[] | select(.percent)] | max_by(.percent) | .revisionName // ""' <<< "$service")
    move=(--to-revisions="$revision=100")
    [[ -n $serving && $serving != "$revision" ]] && move+=(--update-tags="previous=$serving")
    gcloud run services update-traffic "$SERVICE" --quiet --region="$REGION" "${move[@]}"
    echo "$SERVICE: all traffic goes to $revision; before, it went to ${serving:-nothing}"
    ;;
  *)
    echo "usage: traffic.sh url|to TAG" >&2
    exit 2
    ;;
esac
