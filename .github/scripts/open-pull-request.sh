#!/usr/bin/env bash
# Open a pull request with the result of a training run, of which FOLDER holds what git keeps. Nothing else is
# taken from there. Usage: open-pull-request.sh FOLDER
set -euo pipefail
result=(dvc.lock machine.json params.yaml metrics plots)
for each in "${result[@]}"; do
  rm -rf "$each"
  cp -R "$1/$each" .
done
git add --all "${result[@]}"
if git diff --cached --quiet; then
  echo "The result is the one that is committed already; there is nothing to propose."
  exit
fi

settings=${OVERRIDES:-without changes}
title="Experiment ${settings::200} (run $GITHUB_RUN_NUMBER)" # GitHub takes 256 characters
run="$GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID"
printf -v body '%s\n\n' "Settings: $settings" "Trained by $run; data and model are in the bucket." \
  "Close and reopen this pull request to start its checks: GitHub starts none for what a workflow opens."
git -c user.name="github-actions[bot]" -c user.email="41898282+github-actions[bot]@users.noreply.github.com" \
  commit --quiet --message "$title"
cml pr create --branch="experiment-$GITHUB_RUN_ID-$GITHUB_RUN_ATTEMPT" --title="$title" --body="$body"
