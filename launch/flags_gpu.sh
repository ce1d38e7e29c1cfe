#!/usr/bin/env bash
# XLA_FLAGS for NVIDIA GPUs: prints them, or runs a command with them.
#
#   launch/flags_gpu.sh h100                     for: eval "$(launch/flags_gpu.sh h100)"
#   launch/flags_gpu.sh h100 -- COMMAND...       COMMAND with the flags of h100, h200, a100 or l40s
#   --dry-run, --help
#
# What XLA_FLAGS already has is kept, after ours: the last value of a flag counts.

set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"

kind="" DRY_RUN=0
while [[ $# -gt 0 ]]; do
  case $1 in
    h100 | h200 | a100 | l40s) kind=$1 ;;
    --dry-run) DRY_RUN=1 ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "flags_gpu.sh: unknown argument $1; expected h100, h200, a100 or l40s (see --help)" >&2; exit 2 ;;
  esac
  shift
done
[[ -n $kind ]] || { echo "flags_gpu.sh: no kind of GPU; expected h100, h200, a100 or l40s (see --help)" >&2; exit 2; }

# Sources: [X] openxla/xla docs/flags_guidance.md, [N] NVIDIA's JAX-Toolbox, its pages on environment variables and on
# GPU performance. The test suite checks that jaxlib knows the names; the effect on our step has not been measured.
flags=()

# [X], [N] (set in NVIDIA's own JAX images): collectives run while other kernels compute.
flags+=(--xla_gpu_enable_latency_hiding_scheduler=true)

# [X]: in a loop, as our scan over layers is, the next layer's parameters are gathered and the last one's gradients
# scattered during this layer. Costs the memory of about one layer more.
flags+=(
  --xla_gpu_enable_pipelined_all_gather=true
  --xla_gpu_enable_pipelined_reduce_scatter=true
)

# [X]: high enough to combine at least one layer's tensors into one collective. A layer of Llama-3-8B is 218 million
# parameters: 416 MiB in bfloat16. An L40S has half the memory of the others or less, and no NVLink to fill.
case $kind in
  h100 | h200 | a100) bytes=$((512 * 1024 * 1024)) ;;
  l40s) bytes=$((128 * 1024 * 1024)) ;;
esac
flags+=(
  "--xla_gpu_all_gather_combine_threshold_bytes=$bytes"
  "--xla_gpu_reduce_scatter_combine_threshold_bytes=$bytes"
)

XLA_FLAGS="${flags[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
# [N]: jax takes 75 % of the memory by default; "typically 0.9 or 0.8" in training, the rest is for CUDA's libraries.
XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
if [[ $# = 0 ]]; then
  echo "export XLA_FLAGS='$XLA_FLAGS' XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
elif [[ $DRY_RUN = 1 ]]; then
  run env "XLA_FLAGS=$XLA_FLAGS" "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" "$@"
else
  export XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION
  exec "$@" # no process of ours in between: a SIGTERM reaches the command
fi
