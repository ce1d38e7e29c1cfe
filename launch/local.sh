#!/usr/bin/env bash
# Trains on this machine's CPU as if it were many devices or many hosts: to try a mesh or a config before paying.
#
#   launch/local.sh [options] -- ARGS...     `python -m empathax.train ARGS`
#
#   --devices=8         virtual devices of each process
#   --processes=1       processes that find each other over loopback (--multihost is added)
#   --port=8476         of their coordinator
#   --python=python     with empathax installed
#   --dry-run, --help
#
# Process 0 writes to this terminal, process N to WORKDIR.process_N.log. When one fails the others are stopped, and its
# exit code is ours. SIGTERM goes to all. Needs bash 4.3.

set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"

devices=8 processes=1 port=8476 python=python DRY_RUN=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --devices=*) devices=${1#*=} ;;
    --processes=*) processes=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --dry-run) DRY_RUN=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "local.sh: unknown option $1; arguments of train come after -- (see --help)" >&2; exit 2 ;;
  esac
  shift
done
[[ $# -gt 0 ]] || { echo "local.sh: nothing to run; give the arguments of train after --" >&2; exit 2; }
workdir=""
for word in "$@"; do
  if [[ $word = --workdir=* ]]; then workdir=${word#*=}; fi
done
[[ -n $workdir ]] || { echo "local.sh: no --workdir=DIR among the arguments of train" >&2; exit 2; }

train=("$python" -m empathax.train "$@")
settings=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
if [[ $processes = 1 ]]; then
  run env "${settings[@]}" "${train[@]}"
  exit 0
fi

settings+=("JAX_COORDINATOR_ADDRESS=localhost:$port" "JAX_NUM_PROCESSES=$processes")
train+=(--multihost)
if [[ $DRY_RUN = 1 ]]; then
  for ((index = 0; index < processes; index++)); do run env "${settings[@]}" "JAX_PROCESS_ID=$index" "${train[@]}"; done
  exit 0
fi

children=() signals=0 stopped=0
stop() { # once only: a second SIGTERM ends training without a checkpoint
  if [[ $stopped = 0 ]]; then kill -TERM "${children[@]}" 2>/dev/null || true; fi
  stopped=1
}
trap 'signals=$((signals + 1)); stop' TERM

mkdir -p "$(dirname "$workdir")"
for ((index = processes - 1; index >= 0; index--)); do
  command=(env "${settings[@]}" "JAX_PROCESS_ID=$index" "${train[@]}")
  echo "+ $(quoted "${command[@]}")" >&2
  if [[ $index -gt 0 ]]; then
    "${command[@]}" >"$workdir.process_$index.log" 2>&1 &
  else
    "${command[@]}" &
  fi
  children+=("$!")
done

code=0
while [[ -n $(jobs -p) ]]; do
  before=$signals status=0
  wait -n || status=$?
  if [[ $signals != "$before" ]]; then continue; fi # a signal ended the wait, not a child
  if [[ $status != 0 && $code = 0 ]]; then
    code=$status
    stop
  fi
done
exit "$code"
