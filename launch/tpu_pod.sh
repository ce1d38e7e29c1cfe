#!/usr/bin/env bash
# A TPU pod slice through gcloud, from nothing to a finished run.
#
#   launch/tpu_pod.sh create  [options]               asks for the slice and waits until it is there
#   launch/tpu_pod.sh install [options]               copies the last commit to every worker and installs it
#   launch/tpu_pod.sh run     [options] -- ARGS...    `empathax.train --multihost ARGS` on every worker; follows the log
#   launch/tpu_pod.sh logs    [options]               follows the log of one worker
#   launch/tpu_pod.sh resume  [options] -- ARGS...    after a preemption: `create`, `install` if it is gone; `run`
#   launch/tpu_pod.sh delete  [options]               gives the slice back
#
#   --name=N --project=P --zone=Z --type=T    or TPU_NAME, TPU_PROJECT, TPU_ZONE, TPU_TYPE; T as in v5litepod-16, v5p-16
#   --runtime=R           software version of the VMs (default: the one for the type)
#   --spot                cheaper, and may be preempted
#   --nfs=SERVER:/SHARE   install: mounts it at /mnt/runs on every worker
#   --flags=KIND          run: with launch/flags_tpu.sh KIND (default: by the type; none = without)
#   --worker=0            logs: of this worker
#   --detach              run, resume: do not follow the log
#   --dry-run, --help
#
# --workdir has to lie where every worker sees it, such as /mnt/runs: all write checkpoints there, and the run goes on
# from them on another slice. The same ARGS go on at the last checkpoint.

set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"

fail() { echo "tpu_pod.sh: $*" >&2; exit 2; }

command="" name=${TPU_NAME:-} project=${TPU_PROJECT:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-}
runtime="" spot=0 nfs="" flags="" worker=0 detach=0 DRY_RUN=0 poll=${TPU_POLL_SECONDS:-30}
train=()
while [[ $# -gt 0 ]]; do
  case $1 in
    create | install | run | logs | resume | delete) command=$1 ;;
    --name=*) name=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=1 ;;
    --nfs=*) nfs=${1#*=} ;;
    --flags=*) flags=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --detach) detach=1 ;;
    --dry-run) DRY_RUN=1 ;;
    --help) usage; exit 0 ;;
    --) shift; train=("$@"); break ;;
    *) fail "unknown argument $1; arguments of train come after -- (see --help)" ;;
  esac
  shift
done
[[ -n $command ]] || fail "no command; expected create, install, run, logs, resume or delete (see --help)"
[[ -n $name ]] || fail "no name; give --name=N or set TPU_NAME"
[[ -n $project ]] || fail "no project; give --project=P or set TPU_PROJECT"
[[ -n $zone ]] || fail "no zone; give --zone=Z or set TPU_ZONE"
if [[ $command = create || $command = resume || $command = run ]]; then
  [[ -n $type ]] || fail "no type; give --type=T (such as v5litepod-16) or set TPU_TYPE"
fi
if [[ $command = run || $command = resume ]]; then
  [[ ${#train[@]} -gt 0 ]] || fail "nothing to run; give the arguments of train after --"
  [[ " ${train[*]}" = *" --workdir="* ]] || fail "no --workdir=DIR among the arguments of train (one all workers share)"
fi
case $type in
  v5litepod-*) default_runtime=v2-alpha-tpuv5-lite default_flags=v5e ;;
  v5p-*) default_runtime=v2-alpha-tpuv5 default_flags=v5p ;;
  v6e-*) default_runtime=v2-alpha-tpuv6e default_flags=v6e ;;
  v4-*) default_runtime=tpu-ubuntu2204-base default_flags=v4 ;;
  *) default_runtime="" default_flags=none ;;
esac
where=("--project=$project" "--zone=$zone")
describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)")

on_workers() { # on_workers WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

# ACTIVE, SUSPENDED (preempted), FAILED, WAITING_FOR_RESOURCES, ...; MISSING if there is no such slice.
state() {
  local answer
  if answer=$("${describe[@]}" 2>&1); then
    printf '%s\n' "$answer" | tail -n 1
  elif [[ $answer = *NOT_FOUND* ]]; then
    echo MISSING
  else
    printf '%s\n' "$answer" >&2
    return 1
  fi
}

create() {
  local now optional=()
  if [[ $spot = 1 ]]; then optional=(--spot); fi
  : "${runtime:=$default_runtime}"
  [[ -n $runtime ]] || fail "no known runtime for the type $type; give --runtime=R"
  run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$type" "--runtime-version=$runtime" ${optional[@]+"${optional[@]}"}
  if [[ $DRY_RUN = 1 ]]; then
    echo "# every $poll s, until the state is ACTIVE:"
    run "${describe[@]}"
    return
  fi
  while true; do
    now=$(state)
    echo "$name: $now" >&2
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED) echo "tpu_pod.sh: the request ended as $now; 'delete' it, then 'create' again" >&2; exit 1 ;;
    esac
    sleep "$poll"
  done
}

# The VMs' own Python is older than 3.11, so uv brings one.
install() {
  local archive setup
  archive=${TMPDIR:-/tmp}/empathax-$name.tar.gz
  setup="rm -rf empathax && mkdir empathax && tar -xzf empathax.tar.gz -C empathax && cd empathax"
  setup+=" && python3 -m pip install --user --quiet uv && python3 -m uv venv --quiet --python 3.12 .venv"
  setup+=" && python3 -m uv pip install --quiet --python .venv --constraint constraints.txt --editable '.[tpu,gguf]'"
  run git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:empathax.tar.gz" "${where[@]}" --worker=all
  on_workers all "$setup"
  if [[ -n $nfs ]]; then
    on_workers all "sudo apt-get install -qq -y nfs-common && sudo mkdir -p /mnt/runs && { mountpoint -q /mnt/runs \
|| sudo mount -t nfs $(quoted "$nfs") /mnt/runs; } && sudo chmod a+rwx /mnt/runs"
  fi
}

# nohup: the run outlives our connection. --group-signals: a VM that is shut down signals all its processes.
start() {
  local train_command remote
  train_command="launch/supervise.sh --group-signals -- "
  : "${flags:=$default_flags}"
  if [[ $flags != none ]]; then train_command+="launch/flags_tpu.sh $(quoted "$flags") -- "; fi
  train_command+=".venv/bin/python -m empathax.train --multihost $(quoted "${train[@]}")"
  remote="cd empathax && if [ -e run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then echo 'it runs already'; else"
  remote+=" nohup $train_command >> run.log 2>&1 < /dev/null & echo \$! > run.pid; fi"
  on_workers all "$remote"
  if [[ $detach = 0 ]]; then logs; fi
}

logs() { # Ctrl-C ends the following, not the run
  on_workers "$worker" "tail -n 100 -F empathax/run.log"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

resume() {
  local now
  if [[ $DRY_RUN = 1 ]]; then
    run "${describe[@]}"
    echo "# if that is SUSPENDED or FAILED (if there is none, without the delete; if it is ACTIVE, the last step only):"
    now=SUSPENDED
  else
    now=$(state)
    echo "$name: $now" >&2
  fi
  case $now in
    ACTIVE) start; return ;;
    SUSPENDED | FAILED) delete ;;
    MISSING) ;;
    *) echo "tpu_pod.sh: the slice is $now; try again when it is ACTIVE or SUSPENDED" >&2; exit 1 ;;
  esac
  create
  install
  start
}

case $command in
  run) start ;;
  *) "$command" ;;
esac
