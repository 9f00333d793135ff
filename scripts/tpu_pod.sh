#!/usr/bin/env bash
# Runs one `vidcache generate` on every worker of a TPU slice, as one job:
#
#   scripts/tpu_pod.sh NAME ZONE --prompts FILE --out FOLDER [options of vidcache generate]
#
# Needs gcloud, signed in; on every worker this package (pip install "vidcache-jax[tpu]"), and the
# same prompts and checkpoint under the same names, as on a disk or bucket that all have mounted.
# Run it again after an interruption, and the job goes on.
set -euo pipefail

if (($# < 4)); then
  echo "usage: ${0##*/} NAME ZONE --prompts FILE [options of vidcache generate]" >&2
  exit 2
fi
name=$1
zone=$2
shift 2
# Quoted for the shells of the workers, where they are read once more.
printf -v command '%q ' vidcache generate --distributed "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
