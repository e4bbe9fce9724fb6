#!/usr/bin/env bash
# Start-up script of a machine named NAME-RANK in a managed instance group: it takes part in a run, in a container of the
# train image, which is started again up to ten times if it fails. Metadata: image, machines (their number), settings
# (knob=value, blanks between).
set -euo pipefail

metadata() {
  curl --silent --fail --header "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/$1"
}

name=$(metadata name)
image=$(metadata attributes/image)
machines=$(metadata attributes/machines)
text=$(metadata attributes/settings)
read -ra settings <<< "$text"

arguments=(--push --set-param "launch=torchrun -m")
for setting in "${settings[@]}"; do
  arguments+=(--set-param "$setting")
done

HOME=$(mktemp --directory) # for the registry's credentials: that of root may be read-only, as on Container-Optimized OS
export HOME
docker-credential-gcr configure-docker --registries="${image%%/*}" || gcloud auth configure-docker --quiet "${image%%/*}"
docker rm --force petals 2> /dev/null || true
docker run --name petals --init --detach --restart on-failure:10 --gpus all --network host --ipc host --volume petals:/workspace \
  --env PET_NNODES="$machines" --env PET_NPROC_PER_NODE=gpu --env PET_NODE_RANK="${name##*-}" \
  --env PET_MASTER_ADDR="${name%-*}-0" --env PET_MASTER_PORT=29500 \
  "$image" python -m petals.cluster "${arguments[@]}"
