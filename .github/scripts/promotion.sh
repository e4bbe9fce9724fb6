#!/usr/bin/env bash
# Write to $GITHUB_OUTPUT which version of the model the tag $GITHUB_REF_NAME promotes, and the commit it belongs to.
set -euo pipefail
tag=$GITHUB_REF_NAME
if [[ ! $tag =~ ^flowers#prod#[0-9]+$ ]]; then
  echo "$tag promotes nothing: run this on a tag of gto assign flowers --version VERSION --stage prod" >&2
  exit 1
fi
version=$(gto check-ref "$tag" --version)
if [[ ! $version =~ ^v[0-9A-Za-z.+-]+$ ]]; then
  echo "no version is registered at the commit of $tag: gto show flowers lists those that are" >&2
  exit 1
fi
{
  echo "version=$version"
  echo "revision=$(git rev-parse "$tag^{commit}")"
} >> "$GITHUB_OUTPUT"
