#!/usr/bin/env bash
# Runs a command again when it ends, as its exit code asks for, and gives up when restarts bring nothing.
#
#   launch/supervise.sh [options] -- COMMAND...      e.g. -- python -m empathax.train --config=C --workdir=W
#
#   --workdir=DIR       where progress shows (default: the command's own --workdir=DIR)
#   --max-restarts=5    restarts in a row without progress, then it ends with the last exit code
#   --backoff=5         seconds before the first restart; doubled by each one without progress
#   --max-backoff=300   ... up to this
#   --group-signals     whoever stops us stops the command too (a machine that is shut down): pass nothing on
#   --dry-run, --help
#
# 0 ends it. 2 config, 3 data, 4 weights, 5 checkpoint, 6 non-finite and 126, 127 (no such command) end it too: the same
# command would fail again. 75 (preempted), signals (out of memory, a peer's death) and any other code restart it.
# Progress: a training step or a checkpoint beyond all earlier ones. SIGTERM and Ctrl-C go to the command once, and what
# it ends with is our exit code, with no restart.

set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"

workdir="" max_restarts=5 backoff=5 max_backoff=300 group_signals=0 DRY_RUN=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --workdir=*) workdir=${1#*=} ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --backoff=*) backoff=${1#*=} ;;
    --max-backoff=*) max_backoff=${1#*=} ;;
    --group-signals) group_signals=1 ;;
    --dry-run) DRY_RUN=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "supervise.sh: unknown option $1; options come before --, the command after it (see --help)" >&2; exit 2 ;;
  esac
  shift
done
[[ $# -gt 0 ]] || { echo "supervise.sh: no command; expected: supervise.sh [options] -- COMMAND..." >&2; exit 2; }
for word in "$@"; do
  if [[ -z $workdir && $word = --workdir=* ]]; then workdir=${word#*=}; fi
done
if [[ $DRY_RUN = 1 ]]; then
  echo "# until it ends well, or $max_restarts restarts in a row bring no progress in ${workdir:-(no --workdir)}:"
  run "$@"
  exit 0
fi

say() { echo "supervise.sh: $*" >&2; }

# The sum over stages of the last step in metrics.jsonl and the last checkpoint; a sweep's runs are one level down.
progress() {
  [[ -d $workdir ]] || { echo 0; return; }
  {
    find "$workdir" -maxdepth 2 -name metrics.jsonl -exec \
      sed -n 's/.*"step": *\([0-9][0-9]*\).*"stage": *"\([a-z]*\)".*/\1 \2/p' {} +
    find "$workdir" -maxdepth 4 -type d -path '*/checkpoints/*/*' | sed -n 's|\(.*\)/\([0-9][0-9]*\)$|\2 \1|p'
  } 2>/dev/null | awk '$1 > last[$2] { last[$2] = $1 } END { for (name in last) sum += last[name]; print sum + 0 }'
}

child="" stopping=0
stop() {
  stopping=$((stopping + 1))
  if [[ $group_signals = 0 && -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM INT

# Runs the command in a process group of its own, so that a signal to our group does not reach it a second time (a
# second SIGTERM ends training without a checkpoint). Leaves its exit code in `code`.
attempt() {
  if [[ $group_signals = 0 ]]; then set -m; fi
  "$@" &
  child=$!
  set +m
  local before
  while true; do # a signal to us ends `wait` early
    before=$stopping code=0
    wait "$child" || code=$?
    if [[ $stopping = "$before" ]]; then break; fi
  done
  child=""
}

furthest=$(progress) fruitless=0 delay=$backoff
while true; do
  attempt "$@"
  if [[ $stopping != 0 ]]; then
    say "stopped by SIGTERM; the command ended with $code"
    exit "$code"
  fi
  case $code in
    0) exit 0 ;;
    2 | 3 | 4 | 5 | 6 | 126 | 127)
      say "the command ended with $code: a restart would not help"
      exit "$code"
      ;;
  esac
  now=$(progress)
  if ((now > furthest)); then
    furthest=$now fruitless=0 delay=$backoff
  fi
  if ((fruitless >= max_restarts)); then
    say "the command ended with $code; $fruitless restarts in a row brought no progress: giving up"
    exit "$code"
  fi
  fruitless=$((fruitless + 1))
  say "the command ended with $code; restart $fruitless of $max_restarts without progress, in $delay s"
  sleep "$delay" &
  wait $! || true # a signal ends the wait
  if [[ $stopping != 0 ]]; then exit "$code"; fi
  delay=$(awk -v d="$delay" -v cap="$max_backoff" 'BEGIN { d *= 2; print (d < cap ? d : cap) }')
done
