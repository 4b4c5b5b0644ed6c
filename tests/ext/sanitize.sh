#!/bin/sh
# Builds the C++ kernels with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the tree and runs their tests.
# Usage: PYTHON=.venv/bin/python tests/ext/sanitize.sh [pytest arguments]
set -eu
. "$(dirname "$0")/copy.sh"
LATTE_FAST_CUDA=0 LATTE_FAST_CXX_FLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
  "$python" setup.py -q build_ext --inplace
# the interpreter and torch are not instrumented: the runtimes come first, and leaks are theirs
runtime="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libubsan.so) $(${CXX:-g++} -print-file-name=libstdc++.so)"
for level in ${LEVELS:-portable avx512 avx512bf16 amx}; do
  echo "sanitized, level at most $level"
  PYTHONPATH="$copy" LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0 LATTE_FAST_ISA=$level \
    "$python" -m pytest -q -x -s -p no:cacheprovider -m "not slow" -k "not presets and not 256 and not 1152" \
    tests/ext/test_rows.py tests/ext/test_bias_gelu.py tests/ext/test_axis_attention.py \
    tests/ext/test_conv_transpose3d.py tests/ext/test_linear.py "$@"
done
