#!/bin/bash
# Everything a CUDA machine without a network has to show, in calls of at most 10 minutes:
#   OUT=folder [ARCHIVE=path] [COMMIT=name] [DEADLINE=560] benchmarks/cuda.sh [stage ...]
# Each call leaves one OUT/cuda-<device>-<commit>.tgz, also when it is cut off; given back as ARCHIVE, or left in OUT, it
# is where the next call goes on. `make cuda-merge ARCHIVE=path` puts results and tiles into the sources. DRY=1 tries the
# stages on a machine without a GPU. benchmarks/cuda/plan.py has the stages, the most valuable first.
# Exit: 0 all done, 1 a stage failed, 2 refused before anything ran, 3 some stages are left.
cd "${0%/*}/.." || exit 2
exec "${PYTHON:=python3}" -m benchmarks.cuda "$@"
