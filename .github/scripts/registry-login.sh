#!/usr/bin/env bash
# Let Docker, and the action that attests, push to Artifact Registry for the hour that this run is signed in.
set -euo pipefail
token=$(gcloud auth print-access-token)
docker login --username=oauth2accesstoken --password-stdin "https://$REGION-docker.pkg.dev" <<< "$token"
