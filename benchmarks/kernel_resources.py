"""Registers, stack, shared memory and occupancy of every Triton kernel at the presets' shapes; needs no GPU.

python -m benchmarks.kernel_resources                    # all presets and targets, writes docs/kernels.md
python -m benchmarks.kernel_resources --sizes XL --targets 90 --json -
python -m benchmarks.kernel_resources --read a.json b.json # from the records of several Tritons, each beside the other:
                                                         # PYTHONPATH=.venv/triton-3.6.0 ... --json a.json
"""

import argparse
import json
import sys
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
import triton
from torch import Tensor

from benchmarks import compile_ahead
from latte_fast.config import SIZES
from latte_fast.kernels import axis_attention, bias_gelu, gate_residual, norm_modulate
from latte_fast.kernels import gate_residual_norm_modulate as fused

DOCS = Path(__file__).parents[1] / "docs" / "kernels.md"
DTYPES = {"bf16": (torch.bfloat16, torch.bfloat16), "fp32": (torch.float32, torch.float32)}
# the published model under autocast: an fp32 residual stream, other activations in bf16
DTYPES["fp32-bf16"] = (torch.float32, torch.bfloat16)
B, F, N = 4, 16, 256
HEADER = """# The Triton kernels, compiled ahead of time

Written by `python -m benchmarks.kernel_resources`, which needs no GPU: each launcher runs on meta tensors, Triton
{versions} compile what it would launch, with the launch's own hints, warps and stages, and `cuobjdump` reads the cubin.
Theoretical occupancy is resident warps over 64, by registers, shared memory and programs. No kernel here has a stack,
and none loads or stores local memory: `tests/kernels/test_compile_ahead.py` holds that for both versions, and that a
pass over rows leaves its bytes the time, that attention over space has a tile in flight, and that programs fit.

Sizes are presets (`latte_fast/config.py`), {F} frames of {N} patches; `fp32-bf16` is an fp32 residual stream beside
bf16 partners. `time-long` is 64 frames, `rope` the rotary variant, `space-1024` the 512 x 512 model, `pos` a position
table in the same pass, `sums` a training step's backward, which sums the gradients of q, k and v over all tokens for
their bias. Cells: registers / shared KiB / occupancy / instructions of the longest loop, once around
(`docs/performance.md` says what they may be).

"""


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def launch_rows(width: int, wide: torch.dtype, narrow: torch.dtype) -> None:
    x, y = meta(B, F, N, width, dtype=wide), meta(B, F, N, width, dtype=narrow)
    shift, scale, gate = meta(B, 6 * width, dtype=narrow).chunk(6, dim=-1)[:3]
    bias = meta(width, dtype=narrow)
    norm_modulate.norm_modulate_fwd(x, shift, scale, 1e-6, narrow)
    norm_modulate.norm_modulate_bwd(y, x, scale, 1e-6)
    gate_residual.gate_residual_fwd(x, y, gate)
    gate_residual.gate_residual_bwd(x, y, gate)
    fused.gate_residual_norm_modulate_fwd(x, y, gate, shift, scale, 1e-6, bias, None, narrow)
    fused.gate_residual_norm_modulate_bwd(x, y, x, y, bias, gate, scale, 1e-6)
    if wide == narrow:
        u = meta(B, F, N, 4 * width, dtype=narrow)
        bias_gelu.bias_gelu_fwd(u, u[0, 0, 0])
        bias_gelu.bias_gelu_bwd(u, u, u[0, 0, 0])


def launch_pos(width: int, wide: torch.dtype, narrow: torch.dtype) -> None:
    x, y = meta(B, F, N, width, dtype=wide), meta(B, F, N, width, dtype=narrow)
    shift, scale, gate = meta(B, 6 * width, dtype=narrow).chunk(6, dim=-1)[:3]
    bias, pos = meta(width, dtype=narrow), meta(1, F, 1, width, dtype=wide)
    fused.gate_residual_norm_modulate_fwd(x, y, gate, shift, scale, 1e-6, bias, pos, narrow)


def launch_attention(axis: str, frames: int, patches: int, heads: int, K: int, dtype: torch.dtype, rope: bool) -> None:
    q, k, v = meta(B, frames, patches, 3, heads, K, dtype=dtype).unbind(3)
    grads = meta(B, frames, patches, 3, heads, K, dtype=dtype).unbind(3)
    tables = (meta(frames, K // 2, dtype=torch.float32),) * 2 if rope else None
    out, lse = axis_attention.axis_attention_fwd(q, k, v, axis, tables, K**-0.5, None, True)
    axis_attention.axis_attention_bwd(out, q, k, v, out, lse, axis, tables, K**-0.5, None, *grads)


def launch_sums(axis: str, patches: int, heads: int, K: int, dtype: torch.dtype) -> None:
    """Attention's backward as a training step has it: with the sums over tokens, for the bias of q, k and v."""
    q, k, v = meta(B, F, patches, 3, heads, K, dtype=dtype).unbind(3)
    grads = meta(B, F, patches, 3, heads, K, dtype=dtype).unbind(3)
    out, lse = meta(B, F, patches, heads * K, dtype=dtype), meta(B, F, patches, heads, dtype=torch.float32)
    bias = meta(3 * heads * K, dtype=dtype)
    axis_attention.axis_attention_bwd(out, q, k, v, out, lse, axis, None, K**-0.5, None, *grads, bias)


def cases(size: str, dtype: str) -> Iterable[tuple]:
    """Yields (name of the case, launcher, its arguments) for one preset."""
    _, width, heads = SIZES[size]
    wide, narrow = DTYPES[dtype]
    K = width // heads
    yield "", launch_rows, (width, wide, narrow)
    yield "pos", launch_pos, (width, wide, narrow)
    if wide == narrow:
        yield "attention-time", launch_attention, ("time", F, N, heads, K, narrow, False)
        yield "attention-time-rope", launch_attention, ("time", F, N, heads, K, narrow, True)
        yield "attention-time-long-rope", launch_attention, ("time", 64, N, heads, K, narrow, True)
        yield "attention-space", launch_attention, ("space", F, N, heads, K, narrow, False)
        yield "attention-space-1024", launch_attention, ("space", F, 1024, heads, K, narrow, False)
        yield "attention-time-sums", launch_sums, ("time", N, heads, K, narrow)
        yield "attention-space-sums", launch_sums, ("space", N, heads, K, narrow)


def measure(
    sizes: list[str],
    dtypes: list[str],
    targets: list[int],
    wanted: Collection[str] | None = None,
    unwanted: Collection[str] = (),
) -> list[dict]:
    """Compiles the kernels, or those of the cases wanted; returns a record a kernel, preset, dtype and target."""
    found = {}
    for size in sizes:
        for dtype in dtypes:
            chosen = [case for case in cases(size, dtype) if wanted is None or case[0] in wanted]
            chosen = [case for case in chosen if case[0] not in unwanted]
            for what, launch, args in chosen:
                for target in targets:
                    with compile_ahead.compiling_for(target) as compiled:
                        launch(*args)
                    for kernel in compiled:
                        name = kernel.name.removesuffix("_kernel")
                        name = f"{name} ({what.removeprefix('attention-')})" if what else name
                        # one reduction kernel serves several ops
                        if (name, size, dtype, target) not in found:
                            found[name, size, dtype, target] = compile_ahead.usage(kernel)
    keys = ("name", "size", "dtype", "target")
    return [
        dict(zip(keys, key, strict=True)) | {"triton": triton.__version__} | asdict(usage)
        for key, usage in found.items()
    ]


def table(records: list[dict]) -> str:
    """A row a kernel, preset and dtype; a column a target and Triton, which are those found in the records."""
    columns = sorted({(r["target"], r["triton"]) for r in records})
    lines = ["| kernel | preset | dtype | warps | " + " | ".join(f"sm_{t}, {v}" for t, v in columns) + " |"]
    lines.append("|---" * (4 + len(columns)) + "|")
    by_row: dict[tuple, dict[tuple, dict]] = {}
    for r in records:
        by_row.setdefault((r["name"], r["size"], r["dtype"]), {})[r["target"], r["triton"]] = r
    for (name, size, dtype), cells in by_row.items():
        texts = [cell(cells[column]) if column in cells else "" for column in columns]
        warps = next(iter(cells.values()))["warps"]
        lines.append(f"| {name} | {size} | {dtype} | {warps} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def cell(r: dict) -> str:
    return f"{r['registers']} / {r['shared'] / 1024:.1f} / {r['occupancy']:.0%} / {r['loop'] or '-'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    targets = list(compile_ahead.SHARED)
    parser.add_argument("--targets", nargs="+", type=int, choices=targets, default=targets)
    parser.add_argument("--cases", nargs="+", help="names of the cases to compile, such as pos and attention-space")
    parser.add_argument("--without", nargs="+", default=[], help="names of cases to leave out")
    parser.add_argument("--json", help="write the records here (- for stdout) instead of docs/kernels.md")
    parser.add_argument("--read", nargs="+", type=Path, help="write docs/kernels.md from such files; compile nothing")
    args = parser.parse_args()
    if args.read:
        records = [record for path in args.read for record in json.loads(path.read_text())]
    else:
        records = measure(args.sizes, args.dtypes, args.targets, args.cases, args.without)
    if args.json == "-":
        json.dump(records, sys.stdout)
    elif args.json:
        Path(args.json).write_text(json.dumps(records))
    else:
        DOCS.parent.mkdir(exist_ok=True)
        versions = " and ".join(sorted({r["triton"] for r in records}))
        DOCS.write_text(HEADER.format(versions=versions, F=F, N=N) + table(records))


if __name__ == "__main__":
    main()
