#!/bin/sh
# Runs the AMX level's code on a machine with AVX512-BF16 and no AMX, its tiles emulated, in a copy of the tree.
# Usage: PYTHON=.venv/bin/python tests/ext/emulate_amx.sh [pytest arguments]
set -eu
. "$(dirname "$0")/copy.sh"
# under the name of the level that this processor has
sed -i "s|\"avx512bf16\": AVX512_BF16,|\"avx512bf16\": [*AVX512_BF16, \"-DLATTE_ISA_AMX=1\", \"-include\", \"$copy/tests/ext/emulation/amx.h\"],|" setup.py
grep -q emulation setup.py
LATTE_FAST_CUDA=0 "$python" setup.py -q build_ext --inplace
PYTHONPATH="$copy" LATTE_FAST_ISA=avx512bf16 "$python" -m pytest -q -x -p no:cacheprovider -m "not slow" \
  -k "bf16 or real_windows or pairwise or infinities" tests/ext/test_axis_attention.py tests/ext/test_conv_transpose3d.py "$@"
