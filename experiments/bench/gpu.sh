#!/usr/bin/env bash
# What is measured on one accelerator, one after another; results go to experiments/bench/results/. From the repository's root:
#     pip install -e '.[bench,gpu]' && bash experiments/bench/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
results=experiments/bench/results
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92

python -c 'import jax; d = jax.devices()[0]; print(d.platform, d.device_kind); assert d.platform != "cpu", "no accelerator"'
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv

# The programs compile and run there at all.
python -m experiments.bench.accelerator --preset=tiny --smoke
# The fused kernel says what our attention says; elsewhere this test is skipped.
JAX_PLATFORMS=cuda,cpu python -m pytest -q tests/models/test_attention.py -k cudnn_itself

# Decoding at batches of 64, 128 and 256; a process each, so that every one has all of the memory.
for rows in 64 128 256; do
  python -m experiments.bench.accelerator --only="decode x $rows" --output "$results/accelerator_decode_$rows.json"
done

# An update of 64 rows in each way; then more rows in micro-batches with the way that keeps least.
for way in xla dot_product cudnn; do
  python -m experiments.bench.accelerator --only="update, $way" --output "$results/accelerator_update_$way.json"
done
python -m experiments.bench.accelerator --only="update, cudnn, remat" --rows=256 --micro-batches=4 \
  --output "$results/accelerator_update_256.json"

# A round of Online DPO with its breakdown.
python -m experiments.bench.accelerator --only="online_dpo round" --output "$results/accelerator_round.json"
python -m experiments.bench.accelerator --only="online_dpo round" --rows=256 --micro-batches=4 \
  --output "$results/accelerator_round_256.json"
