#!/bin/bash
# usage: all.sh DATA [STEP ...] -- everything that is shown on a GPU, step by step; without steps, all of them.
# TRTPY is a Python with TensorRT, PyCUDA and quantkit's other packages; OUT receives results.tgz, with a log a step.
# A step that fails or takes too long ends only itself.
set -uo pipefail
data=$1; shift
TRTPY=${TRTPY:-python} OUT=${OUT:-gpu-results}
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/../.." && pwd)
work=${WORK:-/tmp/quantkit-gpu}
mkdir -p "$work" "$OUT"
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} QUANTKIT_CACHE=$work/cache QUANTKIT_GPU_DATA=$data
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 NUMBA_CACHE_DIR=$work/numba
quantkit="$TRTPY -m quantkit"
model="$data/model --adapter $data/adapters/sst2 --task sst2 --data $data/glue"

step() { # step NAME SECONDS COMMAND...
    local name=$1 limit=$2; shift 2
    [[ " $steps " == *" $name "* ]] || return 0
    echo "== $name: $*" | tee "$work/$name.log"
    local started=$SECONDS
    timeout "$limit" "$@" >> "$work/$name.log" 2>&1
    echo "== $name: exit $?, $((SECONDS - started)) s" | tee -a "$work/$name.log" "$work/summary.txt"
    tail -n 40 "$work/$name.log"
    tar czf "$OUT/results.tgz" -C "$work" --exclude=cache --exclude=numba --exclude='*.onnx' --exclude='*.npz' . 2> /dev/null
}

steps="${*:-doctor run ways tests int8 run-cache verify bench plain audit leak}"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv > "$work/gpu.txt" 2>&1
step doctor 60 $quantkit doctor
step run 300 $quantkit run $model --backend tensorrt -p fp32,fp16,int8 --out "$work/run"
step ways 300 $TRTPY "$here/ways.py" "$data" "$work/ways.json"
step tests 480 $TRTPY -m pytest tests/gpu -m gpu -v --durations=10 -p no:cacheprovider
step int8 300 $TRTPY "$here/int8.py" "$data" "$work/int8.json"
step run-cache 180 $quantkit run $model --backend tensorrt -p fp32,fp16,int8 --ranges cache --out "$work/run-cache"
step verify 240 $quantkit verify $model --backend tensorrt --calibrators minmax,legacy,entropy2,entropy --out "$work/verify.json"
step bench 120 $quantkit bench $model --backend tensorrt -p fp32,fp16,int8 --out "$work/bench" --duration 5
step plain 120 $TRTPY "$here/plain.py" "$work/cache/plans" "$work/plain.json"
step leak 120 $TRTPY "$here/leak.py" "$work/cache/plans" "$work/leak.json"
step audit 120 bash -c "for p in $work/cache/plans/*.plan; do $quantkit audit \$p --json > $work/audit-\$(basename \$p .plan).json; $quantkit audit \$p; done"
cat "$work/summary.txt"
