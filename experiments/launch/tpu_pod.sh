#!/usr/bin/env bash
# Creates a TPU-VM pod slice, installs this checkout on all its workers, and trains.
#
#   NAME=f5 TYPE=v4-512 ZONE=us-central2-b experiments/launch/tpu_pod.sh \
#     train --config=experiments/imagenet_nfnet.py:F5 --workdir=gs://BUCKET/runs/f5 \
#     --config.data.dir=gs://BUCKET/tensorflow_datasets
#
# v4-512 has 512 cores, two per chip, and thus 256 devices. The workers find each other without
# flags. All workers must see the run directory and the data, in gs:// or on a mounted disk. The same
# command starts the run and resumes it after a preemption.
set -euo pipefail
: "${NAME:?of the TPU}" "${TYPE:?such as v4-512}" "${ZONE:?such as us-central2-b}"
tpu=(gcloud compute tpus tpu-vm)

"${tpu[@]}" describe "$NAME" --zone="$ZONE" >/dev/null 2>&1 ||
  "${tpu[@]}" create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --version="${IMAGE:-tpu-ubuntu2204-base}" --preemptible

archive=$(mktemp)
git archive --format=tar.gz --output="$archive" HEAD
"${tpu[@]}" scp "$archive" "$NAME:nfnet_jax.tar.gz" --zone="$ZONE" --worker=all

# Runs on every worker in a process that outlives the connection; its log is in train.log. The
# image's own Python, 3.10, is too old, so uv installs a newer one.
printf -v words '%q ' "$@"
"${tpu[@]}" ssh "$NAME" --zone="$ZONE" --worker=all --command="
  set -e
  rm -rf nfnet_jax && mkdir nfnet_jax && tar -xzf nfnet_jax.tar.gz -C nfnet_jax && cd nfnet_jax
  python3 -m pip install --quiet --user uv && export PATH=\$PATH:\$HOME/.local/bin
  uv venv --quiet --python 3.13 venv && uv pip install --quiet --python venv -e '.[tpu,data]'
  nohup venv/bin/python -m nfnet_jax $words --join_timeout=300 > ~/train.log 2>&1 &"

echo "follow it: ${tpu[*]} ssh $NAME --zone=$ZONE --worker=0 --command='tail -f train.log'"
echo "stop it:   ${tpu[*]} ssh $NAME --zone=$ZONE --worker=all --command='pkill -TERM -f nfnet_jax'"
