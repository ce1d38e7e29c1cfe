#!/usr/bin/env bash
# LIBTPU_INIT_ARGS for a kind of TPU: prints them, or runs a command with them.
#
#   launch/flags_tpu.sh v5e                      for: eval "$(launch/flags_tpu.sh v5e)"
#   launch/flags_tpu.sh v5e -- COMMAND...        COMMAND with the flags of v4, v5e, v5p or v6e
#   launch/flags_tpu.sh v5p --slices=2 -- ...    several slices, joined by the data centre's network
#   --dry-run, --help
#
# What LIBTPU_INIT_ARGS already has is kept, after ours: the last value of a flag counts.

set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"

kind="" slices=1 DRY_RUN=0
while [[ $# -gt 0 ]]; do
  case $1 in
    v4 | v5e | v5p | v6e) kind=$1 ;;
    --slices=*) slices=${1#*=} ;;
    --dry-run) DRY_RUN=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "flags_tpu.sh: unknown argument $1; expected v4, v5e, v5p or v6e (see --help)" >&2; exit 2 ;;
  esac
  shift
done
[[ -n $kind ]] || { echo "flags_tpu.sh: no kind of TPU; expected v4, v5e, v5p or v6e (see --help)" >&2; exit 2; }

# Sources: [X] openxla/xla docs/flags_guidance.md, [M] AI-Hypercomputer/maxtext benchmarks/xla_flags_library.py.
# libtpu 0.0.42 takes each of them when it compiles for v5e, v5p and v6e ([X] writes kEnabled, which it refuses).
# Nothing has been measured on a TPU yet.
flags=()

# [X] "Pipelining", the three together: in a loop, the all-gathers of the next layer's parameters run during this layer.
# Our layers are such a loop (lax.scan), in which fully sharded parameters are gathered. Costs the memory of one layer.
flags+=(
  --xla_should_allow_loop_variant_parameter_in_chain=enabled
  --xla_should_add_loop_invariant_op_in_chain=enabled
  --xla_tpu_enable_ici_ag_pipelining=true
)

case $kind in
  v5e)
    # [X] "v5e/Async": all-reduces of gradients run beside other work; off by default, all-gathers are so already.
    flags+=(
      --xla_tpu_enable_async_collective_fusion=true
      --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
    )
    ;;
  v6e)
    # [M] for dense models: 96 of the 128 MiB of a v6e's vector memory for a single operation, so that larger tiles fit
    # ([X] names the default, 16 MiB).
    flags+=(--xla_tpu_scoped_vmem_limit_kib=98304)
    ;;
  v4 | v5p) ;; # no flag of their own that we know a reason for
esac

if [[ $slices -gt 1 ]]; then
  # [X], [M] "data parallel overlap": the all-reduces between slices run beside the backward pass. More memory pressure.
  flags+=(
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    --xla_tpu_data_parallel_opt_different_sized_ops=true
  )
fi

LIBTPU_INIT_ARGS="${flags[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
if [[ $# = 0 ]]; then
  echo "export LIBTPU_INIT_ARGS='$LIBTPU_INIT_ARGS'"
elif [[ $DRY_RUN = 1 ]]; then
  run env "LIBTPU_INIT_ARGS=$LIBTPU_INIT_ARGS" "$@"
else
  export LIBTPU_INIT_ARGS
  exec "$@" # no process of ours in between: a SIGTERM reaches the command
fi
