#!/bin/bash
# Everything a CUDA machine without a network has to show, in stages of at most 9 minutes each:
#   OUT=folder benchmarks/cuda.sh [stage ...]       stages: build test sanitize ops model training sampling tune report
# A stage that passed leaves OUT/<stage>.done and is not run again; its output is in OUT/<stage>.log. One that was cut
# off goes on where it was: races that were run, tools that passed and tiles that were measured are kept. DRY=1 runs every
# stage on a machine without a GPU: interpreted kernels, tiny sizes, and commands that need the device only named.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-cuda-out}
PYTHON=${PYTHON:-python3}
DRY=${DRY:-0}
LIMIT=${LIMIT:-540}
mkdir -p "$OUT"

suites() {  # suite ...: races of benchmarks/test_<suite>.py into OUT/<stage>.json
  local files=() more=()
  for suite in "$@"; do files+=("benchmarks/test_$suite.py"); done
  [ "$DRY" = 1 ] && more=(--tiny)
  "$PYTHON" -m pytest "${files[@]}" --benchmark-only -q -p no:cacheprovider "${more[@]}" \
    --results "$OUT/$STAGE.json" --resume
}

needs_gpu() { [ "$DRY" = 1 ] && { echo "needs a GPU, not run: $*"; return 0; }; "$@"; }

# against the torch that is there: nothing is fetched, nothing is replaced
build() {
  LATTE_FAST_CUDA=${LATTE_FAST_CUDA:-$([ "$DRY" = 1 ] && echo auto || echo 1)} \
    "$PYTHON" -m pip install --no-build-isolation --no-deps -q -e . &&
    "$PYTHON" -c "from latte_fast import info; print(info.report())"
}

test() {
  if [ "$DRY" = 1 ]; then
    OMP_NUM_THREADS=1 "$PYTHON" -m pytest tests/kernels/test_norm_modulate.py -m "not slow" -q -p no:cacheprovider -k pairs
  else
    local parallel=()
    # nearly all of a test's time is Triton compiling for its shape
    "$PYTHON" -c "import xdist" 2>/dev/null && parallel=(-n 8)
    # only what needs nothing but torch: the other folders import what such a machine may not have
    "$PYTHON" -m pytest tests/kernels tests/ext tests/modules/test_replay.py -m "cuda and not slow" -q -p no:cacheprovider --durations=10 "${parallel[@]}"
  fi
}

sanitize() {
  local small="cuda and not slow"
  # torch's caching allocator would hide an access beyond a tensor: its blocks are larger, and one beside the other
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck; do
    [ -f "$OUT/sanitize.$tool.done" ] && continue
    needs_gpu compute-sanitizer --tool $tool --error-exitcode 1 \
      "$PYTHON" -m pytest -m "$small" -q -x -p no:cacheprovider tests/kernels tests/ext/test_conv_cuda.py \
      -k "(pairs and not conv) or (transpose3d_on_gpu and bf16)" || return 1
    touch "$OUT/sanitize.$tool.done"
  done
}

ops() { suites ops conv_transpose3d; }
model() { suites block model t2v memory scaling; }
training() { suites training; }
sampling() { suites sampling; }
tune() { needs_gpu "$PYTHON" -c "from latte_fast.cli.tune import tune; tune(sizes=('XL', 'B'))"; }

report() {
  local found=""
  for part in ops model training sampling; do [ -f "$OUT/$part.json" ] && found+="Path('$OUT/$part.json'), "; done
  [ -z "$found" ] && { echo "nothing was measured yet"; return 1; }
  "$PYTHON" -c "from pathlib import Path; from latte_fast.cli.bench import bench; bench(merge=($found), out=Path('$OUT/report'))"
}

failed=0
for STAGE in ${@:-build test sanitize ops model training sampling tune report}; do
  if [ "$(type -t "$STAGE")" != function ]; then echo "$STAGE: no such stage"; exit 2; fi
  if [ -f "$OUT/$STAGE.done" ]; then echo "$STAGE: done before"; continue; fi
  begin=$SECONDS
  export -f build test sanitize ops model training sampling tune report suites needs_gpu
  export OUT PYTHON DRY STAGE
  timeout -k 20 "$LIMIT" bash -c "$STAGE" >"$OUT/$STAGE.log" 2>&1
  status=$?
  if [ $status = 0 ]; then touch "$OUT/$STAGE.done"; else failed=1; fi
  [ $status = 124 ] && echo "over $LIMIT s" >>"$OUT/$STAGE.log"
  echo "$STAGE: $([ $status = 0 ] && echo passed || echo "failed ($status)"), $((SECONDS - begin)) s"
  tail -n "$([ $status = 0 ] && echo 3 || echo 15)" "$OUT/$STAGE.log" | sed 's/^/    /'
done
exit $failed
