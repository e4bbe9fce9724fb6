#!/usr/bin/env bash
# Put the model $VERSION, of the commit $REVISION, into a layer on the service's newest image; push that as a release,
# and write its name and digest to $GITHUB_OUTPUT.
set -euo pipefail
images=$REGION-docker.pkg.dev/$PROJECT/petals
serve=$images/serve@$(docker buildx imagetools inspect "$images/serve:main" --format "{{.Manifest.Digest}}")
if [[ $ATTESTED == true ]]; then # nothing else than Images may have made what goes into production
  gh attestation verify "oci://$serve" --repo="$GITHUB_REPOSITORY" --source-ref=refs/heads/main \
    --signer-workflow="$GITHUB_REPOSITORY/.github/workflows/images.yml" > /dev/null
fi
tag=${VERSION//+/-}-$GITHUB_RUN_NUMBER-$GITHUB_RUN_ATTEMPT
context=$(mktemp --directory)
dvc artifacts get . flowers --rev "$VERSION" --out "$context/model.onnx"
docker buildx build --push --provenance=false --file=docker/release.Dockerfile --build-arg="SERVE=$serve" \
  --label="org.opencontainers.image.base.name=$serve" \
  --label="org.opencontainers.image.revision=$REVISION" \
  --label="org.opencontainers.image.version=$VERSION" \
  --tag="$images/release:$tag" "$context"
digest=$(docker buildx imagetools inspect "$images/release:$tag" --format "{{.Manifest.Digest}}")
{
  echo "name=$images/release"
  echo "digest=$digest"
  echo "model=$context/model.onnx"
} >> "$GITHUB_OUTPUT"
