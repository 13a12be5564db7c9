#!/usr/bin/env bash
# Runs several processes on this machine as one job:
#
#   experiments/launch/local.sh 4 train --config=experiments/digits.py --workdir=runs/digits
#
# Use it to test the behaviour of a pod, or to feed each GPU from a separate process. Process I sees
# only GPU I. (A single process also uses all GPUs of a machine.)
set -u
num_processes=$1
shift
python=${PYTHON:-python3}
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}

processes=()
for ((id = 0; id < num_processes; id++)); do
  CUDA_VISIBLE_DEVICES=$id "$python" -m nfnet_jax "$@" \
    --coordinator="localhost:$port" --num_processes="$num_processes" --process_id="$id" &
  processes+=("$!")
done

# A request to stop goes to all processes, which save a checkpoint and exit. A second Ctrl-C kills
# them.
interrupted=0
interrupt() {
  if ((interrupted++)); then kill -KILL "${processes[@]}"; else kill -TERM "${processes[@]}"; fi 2>/dev/null
}
trap interrupt INT
trap 'kill -TERM "${processes[@]}" 2>/dev/null' TERM HUP USR1
status=0
for process in "${processes[@]}"; do
  wait "$process"
  code=$?
  while kill -0 "$process" 2>/dev/null; do # A signal has interrupted the wait.
    wait "$process"
    code=$?
  done
  [ "$status" -ne 0 ] || status=$code
done
((interrupted && status == 0)) && status=130
exit "$status"
