"""The kernels' tests on the GPU, a file after the other, plain or under tools of compute-sanitizer.

python -m benchmarks.cuda.shards FILE [memcheck] [racecheck]    # FILE lists those that passed, which do not run again
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# torch's caching allocator would hide an access beyond a tensor: its blocks are larger, and one beside the other
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
KERNELS = (
    "norm_modulate",
    "gate_residual_norm_modulate",
    "axis_attention",
    "bias_gelu",
    "gate_residual",
    "pooled_norm",
    "norm_silu_halo",
)
# file -> the cases that a sanitizer, 10 to 100 times slower, has the time for, if any
SHARDS = {f"tests/kernels/test_{name}.py": "pairs" for name in KERNELS}
SHARDS |= {
    "tests/kernels/test_causal_attention.py": "pairs",
    "tests/kernels/test_decoding.py": "pairs",
    "tests/kernels/test_adamw_ema.py": "several_programs",
    "tests/kernels/test_fp8.py": "edges",
    "tests/ext/test_conv_cuda.py": "transpose3d_on_gpu and bf16",
    "tests/cuda_graphs/test_replay.py": "",
    "tests/token_films/test_steps.py": "",
}


def commands(tools: list[str]) -> dict[str, list[str]]:
    """Name -> command of every shard; the tests need nothing but torch, and hypothesis where it is there."""
    found = {}
    for tool in tools or [""]:
        for file, few in SHARDS.items():
            if tool and not few:
                continue
            pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-m", "cuda and not slow"]
            if tool:
                pytest = [sanitizer(), "--tool", tool, "--error-exitcode", "1", *pytest, "-x", "-k", few]
            found[f"{tool} {file}".strip()] = pytest
    return found


def sanitized(tool: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> (command, environment) of every file's few cases under a tool; empty where it is not installed."""
    if not shutil.which(sanitizer()):
        return {}
    return {re.sub(r"\W+", "-", name): (command, SANITIZED) for name, command in commands([tool]).items()}


def sanitizer() -> str:
    return shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


def main(finished: Path, tools: list[str]) -> int:
    """1 where a shard failed."""
    if tools and not shutil.which(sanitizer()):
        print("compute-sanitizer is not installed")
        return 1
    done = finished.read_text().splitlines() if finished.is_file() else []
    failed = []
    for name, command in commands(tools).items():
        if name in done:
            continue
        print(name, flush=True)
        if subprocess.run(command, env=os.environ | (SANITIZED if tools else {})).returncode:
            failed.append(name)
            continue
        with finished.open("a") as out:
            out.write(f"{name}\n")
    for name in failed:
        print(f"{name}: FAILED")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
