#!/usr/bin/env bash
# Make a revision of the service $SERVICE from the release $IMAGE. It gets no traffic, only an address of its own, which
# is written to $GITHUB_OUTPUT. Other variables of its environment stay as somebody has set them.
set -euo pipefail
here=$(dirname "$0")
# Cloud Run refuses to keep traffic from the first revision of a service, or where none has come up yet: there is no other
# that could have it.
ready=$(gcloud run services list --region="$REGION" --format=json |
  jq --raw-output --arg name "$SERVICE" '.[] | select(.metadata.name == $name) | .status.latestReadyRevisionName // ""')
hold=()
if [[ -n $ready ]]; then
  hold=(--no-traffic)
fi
suffix=${VERSION//[^0-9A-Za-z]/-}-$GITHUB_RUN_NUMBER-$GITHUB_RUN_ATTEMPT
gcloud run deploy "$SERVICE" --quiet --region="$REGION" --image="$IMAGE" "${hold[@]}" --tag=next \
  --revision-suffix="${suffix,,}" \
  --service-account="$SERVING_ACCOUNT" \
  --update-env-vars="PETALS_VERSION=$VERSION,PETALS_REVISION=$REVISION,PETALS_THREADS=1" \
  --set-custom-audiences="$AUDIENCE" \
  --startup-probe=httpGet.path=/readyz,periodSeconds=2,timeoutSeconds=2,failureThreshold=30 \
  --liveness-probe=httpGet.path=/healthz,periodSeconds=30,timeoutSeconds=5,failureThreshold=3 \
  --cpu=1 --memory=2Gi --cpu-boost --concurrency=32 --timeout=60 \
  --min="$MIN_INSTANCES" --max-instances="$MAX_INSTANCES"
url=$("$here/traffic.sh" url next)
echo "url=$url" >> "$GITHUB_OUTPUT"
