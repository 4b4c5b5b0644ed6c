"""Compiles the 3D-VQGAN's kernels for GPUs that are not here and prints what each holds.

A process of its own, as the tests interpret kernels.

python -m tests.kernels.ahead_vqgan TARGET
"""

import json
import sys
from dataclasses import asdict

import torch

from latte_fast.kernels import compile_ahead, nearest_code, norm_silu_halo


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def main(target: int) -> None:
    found = []
    with compile_ahead.compiling_for(target) as compiled:
        for dtype in (torch.bfloat16, torch.float32):
            for channels in (64, 256):
                x = meta(2, channels, 16, 32, 32, dtype=dtype).to(memory_format=torch.channels_last_3d)
                scale = meta(1, channels)
                for pads in ((1,) * 6, (0,) * 6):
                    out = norm_silu_halo.norm_silu_halo_fwd(x, scale, scale, pads)
                    norm_silu_halo.norm_silu_halo_bwd(out, x, scale, scale, pads)
        nearest_code.nearest_code_fwd(meta(2048, 256), meta(16384, 256))
    found = [asdict(compile_ahead.usage(kernel)) for kernel in compiled]
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
