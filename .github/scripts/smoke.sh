#!/usr/bin/env bash
# See whether the service at an address is up and answers with the model it should: it reports the version $VERSION, the
# commit $REVISION and the file's hash, and gives the probabilities that the file itself says for its check image.
# $TOKEN is sent where the service asks who calls. Usage: smoke.sh URL MODEL
set -euo pipefail
url=${1%/} model=$2
here=$(dirname "$0")
work=$(mktemp --directory)
trap 'rm -r "$work"' EXIT
umask 077
[[ -z ${TOKEN:-} ]] || echo "header = \"Authorization: Bearer $TOKEN\"" > "$work/curl"
touch "$work/curl"
ask() { curl --config "$work/curl" --silent --show-error --fail-with-body --max-time 60 --retry 5 --retry-connrefused "$@"; }
fail() { echo "$url: $*" >&2 && exit 1; }

# Cloud Run's front end answers such paths itself. Behind it, the probes have asked them before the revision was ready.
if [[ $url != *.run.app ]]; then
  for path in /healthz /readyz; do
    ask --output /dev/null "$url$path" || fail "$path does not answer"
  done
fi

ask --output "$work/model.json" "$url/model" || fail "/model does not answer"
hash=$(sha256sum "$model" | cut -d " " -f 1)
is=$(jq --raw-output '"\(.version) of \(.revision), \(.sha256)"' "$work/model.json")
[[ $is == "$VERSION of $REVISION, $hash" ]] || fail "serves $is, not $VERSION of $REVISION, $hash"

python3 "$here/model_check.py" "$model" > "$work/check.json"
jq --raw-output .image "$work/check.json" | base64 --decode > "$work/check.png"
ask --output "$work/answer.json" --form "files=@$work/check.png" "$url/predict?top_k=1000" || fail "/predict does not answer"
# It is off by 1 where classes are missing; of more than a thousand, the likeliest thousand are asked for. The tolerance is
# that of petals.inference: processors differ a little.
worst=$(jq --slurpfile check "$work/check.json" \
  '(.images[0].guesses // [] | map({(.name): .probability}) | add // {}) as $found
   | $check[0].probabilities as $right
   | if ([$right | keys[] | select($found[.])] | length) < ([1000, ($right | length)] | min) then 1
     else [$right | to_entries[] | .value - ($found[.key] // 0) | fabs] | max end' \
  "$work/answer.json")
jq --exit-status --null-input --argjson worst "$worst" '$worst <= 0.05' > /dev/null ||
  fail "answers the check image wrongly: a probability is off by $worst"
echo "$url serves $is; on its check image it is off by $worst at most"
