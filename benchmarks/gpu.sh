#!/usr/bin/env bash
# All measurements on a GPU in at most nine minutes: parity, tests of the operations, network passes, whole
# reconstructions, training. Usage: benchmarks/gpu.sh OUT_DIR
# Writes OUT_DIR/gpu.json and OUT_DIR/gpu.md, which also report steps that failed or ran out of time.
# Environment:
#   PYTHON       interpreter (default: that of .venv, else python3)
#   GLDM_SHARED  folder of parity/, with the published scores
#   SMALL=1      sizes that a CPU runs in a minute or two, to try the script
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/gpu.sh OUT_DIR" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
if [ -e "$out/gpu.json" ]; then
    echo "error: $out/gpu.json is there already; name another folder." >&2
    exit 2
fi
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
total=520 # seconds; the rest of the nine minutes is for collecting the results
failed=0
if [ "${SMALL:-}" ]; then
    small=--small
    network=(--networks small --size 64 --batch 1 --forms plain,native --rounds 2)
    tests=(tests/test_op/test_resampling.py::{test_matches_published_resampling,test_equals_slow_form})
else
    small=
    if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
        echo "error: PyTorch of $python finds no GPU; SMALL=1 tries the script on a CPU." >&2
        exit 2
    fi
    network=(--networks "published,small" --size "192,96,128" --batch "16,1,4,32" --forms plain,native,triton --rounds 3
        --minutes 1)
    compiled=(--networks published --size 192 --batch 16 --forms native,compile,compile_triton --precision bf16 --rounds 5)
    tests=(tests/test_op tests/test_models/test_convert.py tests/test_models/test_precision.py)
fi

printf 'step\texit\tseconds\tcommand\n' >"$work/steps.tsv"
# step NAME LIMIT COMMAND…: takes at most LIMIT seconds, and at most what is left of the total
step() {
    local name=$1 limit=$2 begun=$SECONDS code=0
    shift 2
    ((limit > total - SECONDS)) && limit=$((total - SECONDS))
    if ((limit < 5)); then
        code="left out: no time"
    else
        echo "$name: at most $limit s"
        # PyTorch's compiler starts workers that outlive a plain signal to the parent
        timeout --kill-after=5 "$limit" "$python" "$@" >"$work/$name.log" 2>&1 || code=$?
    fi
    [ "$code" = 0 ] || { failed=1; echo "$name: exit $code (124: out of time)" >&2; tail -5 "$work/$name.log" 2>/dev/null >&2; }
    printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begun))" "python ${*//$work/WORK}" >>"$work/steps.tsv"
}

# shellcheck disable=SC2086
{
    step parity 60 -m benchmarks.gpu parity "$work" $small
    step tests 100 -m pytest -q -x "${tests[@]}"
    step network 90 -m benchmarks.network "${network[@]}" --out "$work/network"
    [ "$small" ] || step compiled 100 -m benchmarks.network "${compiled[@]}" --out "$work/network_compiled"
    step reconstruction 110 -m benchmarks.gpu reconstruction "$work" $small
    step training 80 -m benchmarks.gpu training "$work" $small
    step scenes 20 -m benchmarks.gpu scenes "$work" $small
}
"$python" -m benchmarks.gpu collect "$work" --out "$out" || exit 1
exit $failed
