"""latte-fast cost."""

import math

from latte_fast.cli.endings import sentence
from latte_fast.config import PRESETS, TABLE_3_PRESETS, LatteConfig
from latte_fast.cost_model import cost as cost_of
from latte_fast.cost_model import rows
from latte_fast.flex_config import SIDES, FlexLatteConfig
from latte_fast.flex_cost import flex_cost
from latte_fast.flex_cost import rows as flex_rows
from latte_fast.parallel_cost import Links, shared_cost
from latte_fast.parallel_cost import rows as shared_rows


def cost(
    model: str = "Latte-XL/2",
    batch: int = 1,
    frames: int = 16,
    size: int = 256,
    bytes_each: int = 2,
    tflops: float = 790.0,
    tb_per_s: float = 4.3,
    tflops_8bit: float = 1400.0,
    flex: str | None = None,
    sides: tuple[int, ...] = SIDES,
    steps: int = 50,
    gpus: int = 1,
    link: float = 450.0,
    between: float = 50.0,
    per_machine: int = 8,
    wait_us: float = 30.0,
) -> None:
    """Print what a model's forward costs: parameters, multiply-adds, bytes, and a lower bound of its time.

    With --flex, a FlexLatte's multiply-adds at each density, and their mean over the steps of sampling.

    Args:
        model: a preset, Latte-{S,B,L,XL}/{2,4,8}, Latte-XL/2-table3-v3 or Latte-XL/4-table3-v4.
        batch: number of clips; the paper's tables count 3.
        frames: number of frames in a clip.
        size: height and width of a frame in pixels.
        bytes_each: bytes of one weight or activation.
        tflops: TFLOP/s of matrix products in the lower bound; the default is an assumption for an H200 in bf16.
        tb_per_s: TB/s of copies (read + write) in the lower bound; the default is an assumption for an H200.
        tflops_8bit: TFLOP/s of products of 8 bits in a second lower bound; an assumption for an H200, as the others.
        flex: FlexDiT's layout of blocks, or auto for the default of the preset's depth.
        sides: sides of FlexDiT's sparse grid, from noise to sample.
        steps: number of sampling steps that FlexDiT's mean is over.
        gpus: with more than 1, also the cost on 2, 4, ... GPUs that share each clip (docs/many-gpus.md).
        link: GB/s that a GPU sends to another in its machine; an assumption, as are the three options that follow.
        between: GB/s that a GPU sends to another machine.
        per_machine: number of GPUs in a machine.
        wait_us: microseconds that an exchange takes besides its bytes.
    """
    if model not in PRESETS | TABLE_3_PRESETS:
        raise SystemExit(f"cost: model must be one of {', '.join(PRESETS | TABLE_3_PRESETS)}, got {model}")
    if not (0 < tflops < math.inf and 0 < tb_per_s < math.inf):
        raise SystemExit(f"cost: tflops and tb_per_s must be positive, and finite, got {tflops} and {tb_per_s}")
    if not 0 < tflops_8bit < math.inf:
        raise SystemExit(f"cost: tflops_8bit must be positive, and finite, got {tflops_8bit}")
    if not (min(link, between) > 0 and wait_us >= 0 and per_machine >= 1):
        raise SystemExit("cost: link, between and per_machine must be positive, and wait_us at least 0")
    links = Links(link * 1e9, between * 1e9, per_machine, wait_us * 1e-6)
    try:
        if flex is not None:
            known = (PRESETS | TABLE_3_PRESETS)[model] | {"input_size": max(1, size // 8), "num_frames": frames}
            config = FlexLatteConfig(**known, layout=flex, sides=sides)
            for name, line in flex_rows(model, batch, config, flex_cost(config, batch, steps=steps)):
                print(f"{name:24}{line}")
            return
        result = cost_of(model, batch, frames, size, bytes_each=bytes_each)
        on_several(model, batch, frames, size, bytes_each, gpus, links, 1.0)  # refused before anything is printed
    except ValueError as error:
        raise SystemExit(sentence(error, "cost")) from None
    for name, value in rows(model, batch, result):
        print(f"{name:24}{value}")
    floor = result.floor_seconds(tflops * 1e12, tb_per_s * 1e12)
    print(f"{'floor of a forward':24}{floor * 1e3:.2f} ms at {tflops:g} TFLOP/s and {tb_per_s:g} TB/s")
    eight = result.floor_seconds_8bit(tflops * 1e12, tflops_8bit * 1e12, tb_per_s * 1e12)
    share, gigabytes = result.macs_8bit / result.macs_needed, result.weight_bytes_8bit / 1e9
    about = f"{share:.0%} of the multiply-adds at {tflops_8bit:g} TFLOP/s, {gigabytes:.2f} GB of parameters"
    print(f"{'floor with fp8':24}{eight * 1e3:.2f} ms: {about}")
    if gpus > 1:
        print("\n".join(on_several(model, batch, frames, size, bytes_each, gpus, links, floor)))


def on_several(
    model: str, batch: int, frames: int, size: int, bytes_each: int, gpus: int, links: Links, floor: float
) -> list[str]:
    """Returns the table of a forward shared by 1, 2, 4, ... GPUs."""
    config = LatteConfig(**(PRESETS | TABLE_3_PRESETS)[model])
    patches = (size // 8 // config.patch_size) ** 2
    degrees = [gpus, *(2**i for i in reversed(range(gpus.bit_length())) if 2**i < gpus)]  # the largest is refused first
    costs = [shared_cost(config, batch, frames, patches, n, links, floor, bytes_each) for n in degrees][::-1]
    return ["", f"a forward of {batch} clip{'s' * (batch > 1)} shared by GPUs, by arithmetic", *shared_rows(costs)]
