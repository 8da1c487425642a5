#!/bin/bash
# usage: plugins.sh DATA STEP... -- the steps of plugins.py and the kernels' tests, each with its own time limit and log.
# TRTPY, OUT and WORK as in all.sh; QUANTKIT_CACHE holds what quantkit plugins build made.
set -uo pipefail
data=$1; shift
TRTPY=${TRTPY:-python} OUT=${OUT:-gpu-results} work=${WORK:-/tmp/quantkit-plugins}
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$work" "$OUT"
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} QUANTKIT_CACHE=${QUANTKIT_CACHE:-$work/cache}
bench="$TRTPY benchmarks/gpu/plugins.py"

step() { # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS; shift 2
    timeout "$limit" "$@" > "$work/$name.log" 2>&1
    echo "== $name: exit $?, $((SECONDS - started)) s" | tee -a "$work/summary.txt"
    cp -r "$work"/*.log "$work"/*.json "$work"/*-logs "$OUT"/ 2> /dev/null
}

for name in "$@"; do
    case $name in
        build) step build 120 $TRTPY -m quantkit plugins build ;;
        base) step base 60 $TRTPY benchmarks/gpu/bert_base.py "$data/base" ;;
        tests | memcheck)
            # Tests have cache folders of their own; they find the library by its name.
            export QUANTKIT_PLUGINS=$(find "$QUANTKIT_CACHE/plugins" -name 'libquantkit_plugins.so' | head -n 1) ;;&
        tests) step tests 90 $TRTPY -m pytest tests/backends/trt/test_plugin_arithmetic.py tests/gpu/test_plugin_engines.py -m gpu -q --maxfail=12 -p no:cacheprovider ;;
        memcheck) step memcheck 120 compute-sanitizer --error-exitcode 9 $TRTPY -m pytest tests/backends/trt/test_plugin_arithmetic.py -m gpu -q -p no:cacheprovider -k "${ONLY:-test}" ;;
        attention-tests) step attention-tests 300 $TRTPY -m pytest tests/gpu/test_attention_plugin.py -m gpu -q -p no:cacheprovider ;;
        tiles) step tiles 40 $bench tiles "$data" "$work/tiles.json" ;;
        kernels) step kernels 90 $bench kernels "$data" "$work/kernels.json" ;;
        plugins) step plugins 90 $bench speed "$data" "$work/plugins.json" --ways "plugins int8,plugins fp16" --batches 32,1,8,128 ;;
        accuracy) step accuracy 100 $bench accuracy "$data" "$work/accuracy.json" ;;
        attention) step attention "${LIMIT:-120}" $TRTPY benchmarks/gpu/attention.py "$data" "$work/attention.json" --seconds "$((${LIMIT:-120} - 12))" --variants "${ONLY:-}" --models "${MODELS:-base,minilm}" ;;
        packed) step packed 60 $bench packed "$data" "$work/packed.json" ;;
        references) # TensorRT's own FP16 engines, built side by side
            for batch in 1 8 32 128; do
                step "onnx-$batch" 170 $bench speed "$data" "$work/onnx-$batch.json" --ways "onnx fp16" --batches $batch --build-only &
            done
            wait ;;
        speed) step speed 60 $bench speed "$data" "$work/speed.json" --ways "plugins int8,plugins fp16,onnx fp16" ;;
    esac
done
cat "$work/summary.txt"
