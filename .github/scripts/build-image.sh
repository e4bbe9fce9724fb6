#!/usr/bin/env bash
# Build the image $TARGET of the Dockerfile from the commit $GITHUB_SHA, push it to Artifact Registry, and write its
# name and digest to $GITHUB_OUTPUT.
set -euo pipefail
if [ "$GITHUB_RUN_ATTEMPT" != 1 ]; then # of a commit that may no longer be the newest
  echo "A run that is run again could call an older image main: choose Actions → Images → Run workflow." >&2
  exit 1
fi
name=$REGION-docker.pkg.dev/$PROJECT/petals/$TARGET
docker buildx build --push --provenance=false --target="$TARGET" \
  --label="org.opencontainers.image.revision=$GITHUB_SHA" \
  --label="org.opencontainers.image.source=$GITHUB_SERVER_URL/$GITHUB_REPOSITORY" \
  --tag="$name:$GITHUB_SHA" --tag="$name:main" .
digest=$(docker buildx imagetools inspect "$name:$GITHUB_SHA" --format "{{.Manifest.Digest}}")
{
  echo "name=$name"
  echo "digest=$digest"
} >> "$GITHUB_OUTPUT"
