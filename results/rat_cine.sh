#!/usr/bin/env bash
# Trains GM and LM on one under-sampled scan at full size and reconstructs it, for three masks; then with the shipped priors.
# Usage: results/rat_cine.sh DATA [uniform_r4 uniform_r8 published_r3p56]
# DATA: folder of rat_cine_192x192x8.mat and mask_tis_uniform_acs16_r3p56.mat
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1
shift
python=${PYTHON:-.venv/bin/python}

small=(--config=configs/ve/cpu_demo.py --config.model.nf=8)
[ $# -gt 0 ] || set -- uniform_r4 uniform_r8 published_r3p56
for case in "$@"; do
    case $case in
    uniform_r4) train=(--config.mask.acceleration=4 --config.mask.acs=8) sample=(--pattern uniform --acceleration 4 --acs 8) ;;
    uniform_r8) train=(--config.mask.acceleration=8 --config.mask.acs=8) sample=(--pattern uniform --acceleration 8 --acs 8) ;;
    published_r3p56)
        mask=$data/mask_tis_uniform_acs16_r3p56.mat
        train=("--config.mask.path=$mask") sample=(--mask "$mask")
        ;;
    esac
    # two heartbeats of 8 frames make the 16 frames of the mask
    $python main.py "${small[@]}" --mode=train --workdir="exp/rat_$case" \
        --config.data.path="$data/rat_cine_192x192x8.mat" --config.data.scan_frames=16 \
        --config.training.batch_size=4 --config.training.n_iters=150 "${train[@]}"
    # the published sampler: the published range of σ in 12 of 40 levels
    for sampler in cascade published; do
        operator=$([ $sampler = cascade ] && echo llr || echo hankel)
        $python PCsampling_demo_svd.py "${small[@]}" --data "$data/rat_cine_192x192x8.mat" --frames 16 "${sample[@]}" \
            --checkpoint_global "exp/rat_$case/global/model.safetensors" \
            --checkpoint_local "exp/rat_$case/local/model.safetensors" \
            --config.sampling.num_scales=40 --config.sampling.iterations=12 \
            --config.ou.operator=$operator --sampler $sampler --out "results/rat_${case}_$sampler" --overwrite
    done
    $python PCsampling_demo_svd.py --data "$data/rat_cine_192x192x8.mat" --frames 16 "${sample[@]}" \
        --out "results/rat_${case}_shipped" --overwrite
done
