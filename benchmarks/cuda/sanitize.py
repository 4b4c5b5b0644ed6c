"""The kernels under compute-sanitizer, shard by shard.

python -m benchmarks.cuda.sanitize FILE    # of finished shards, which are not run again
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck")
# torch's caching allocator would hide an access beyond a tensor: its blocks are larger, and one beside the other
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SHARDS = [
    *((f"tests/kernels/test_{name}.py", "pairs") for name in ("norm_modulate", "gate_residual_norm_modulate")),
    *((f"tests/kernels/test_{name}.py", "pairs") for name in ("axis_attention", "bias_gelu", "gate_residual")),
    ("tests/ext/test_conv_cuda.py", "transpose3d_on_gpu and bf16"),
]


def main(finished: Path) -> int:
    """1 where a shard failed; those that passed are in the file and are not run again."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not installed")
        return 1
    done = finished.read_text().splitlines() if finished.is_file() else []
    failed = []
    for check in TOOLS:
        for file, cases in SHARDS:
            name = f"{check} {file}"
            if name in done:
                continue
            tests = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-m", "cuda and not slow", "-k", cases]
            command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, *tests]
            if subprocess.run(command, env=os.environ | ENVIRONMENT).returncode:
                failed.append(name)
                continue
            with finished.open("a") as out:
                out.write(f"{name}\n")
            print(f"{name}: clean", flush=True)
    print("\n".join(f"{name}: NOT clean" for name in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
