#!/usr/bin/env bash
# Builds the image and trains in it, cut off from the network, as an ordinary user, on data and runs below one folder.
#
#   launch/docker/run.sh cuda /data/remind --config=configs/manifest.py --config.data.root=/shared/mine \
#     --workdir=/shared/runs/mine
#
# The folder (here /data/remind) is /shared inside and must belong to you. DRY_RUN=1 prints what would start.
set -euo pipefail
if (($# < 2)) || [[ $1 != cpu && $1 != cuda ]]; then
  echo "error: write launch/docker/run.sh cpu|cuda FOLDER ARGUMENTS…" >&2
  exit 2
fi
target=$1 folder=$2
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=(docker build --target "$target" --tag "remind-jax:$target" --file "$root/launch/docker/Dockerfile" "$root")
run=(docker run --rm --network none --read-only --tmpfs /tmp --env HOME=/tmp --user "$(id -u):$(id -g)" --cap-drop ALL)
run+=(--security-opt no-new-privileges --shm-size 8g --volume "$folder:/shared")
if [[ $target == cuda ]]; then
  run+=(--gpus all)
fi
run+=("remind-jax:$target" -m remind_jax.main "$@")
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${build[@]}" && echo
  printf '%q ' "${run[@]}" && echo
  exit 0
fi
"${build[@]}"
exec "${run[@]}"
