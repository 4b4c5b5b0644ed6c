"""Time by arithmetic, kernel by kernel and block by block: what each unit of a multiprocessor needs; the largest wins.

python benchmarks/predict.py records.json    # writes the tables into docs/performance.md; needs no GPU

The records are those of benchmarks/kernel_resources.py for XL, bf16, sm_90. A kernel takes as long as the unit that
has the most to do: memory its bytes, four schedulers their instructions, tensor cores their multiply-adds, the special
function units their exponentials. All run beside each other at best, so this is a floor, and no measurement.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
CLOCK, MULTIPROCESSORS = 1.98e9, 132
# (bytes a second copied, read and written; bf16 GEMM flops a second), as others measured them
CARDS = {"H200": (4.3e12, 790e12), "H100": (3.0e12, 798e12)}
FMAS, SPECIAL = 2048, 16  # a clock and multiprocessor, dense bf16; special functions
FRAMES, PATCHES, D, HEADS = 16, 256, 1152, 16
TOKENS = FRAMES * PATCHES
U = 2 * TOKENS * D  # bytes of one pass over an activation


@dataclass(frozen=True)
class Work:
    """How often a clip goes around a kernel's loop, in how many programs, and the bytes it moves in passes of U."""

    name: str  # of the record
    turns: int
    programs: int
    passes: int
    straight: bool = False  # no loop: a program's instructions are a turn's


def streamed(name: str, patches: int, own: int, other: int, passes: int) -> Work:
    """Attention over space: programs own `own` tokens of a sequence and go around once for `other` of it."""
    sequences = TOKENS // patches * HEADS
    programs = sequences * math.ceil(patches / own)
    return Work(name, programs * math.ceil(patches / other), programs, passes)


KERNELS = [
    Work("norm_modulate_fwd", TOKENS, 0, 2),
    Work("gate_residual_norm_modulate_fwd", TOKENS, 0, 4),
    Work("bias_gelu_fwd", 4 * TOKENS * D // 2048, 0, 8),
    Work("packed_attention_fwd (time)", PATCHES * HEADS // 4, PATCHES * HEADS // 4, 4, straight=True),
    streamed("flash_attention_fwd (space)", 256, 128, 64, 4),
    streamed("flash_attention_fwd (space-1024)", 1024, 128, 64, 4),
    Work("norm_modulate_bwd", TOKENS, 0, 3),
    Work("gate_residual_norm_modulate_bwd", TOKENS, 0, 6),
    Work("bias_gelu_bwd", 4 * TOKENS * D // 2048, 0, 12),
    Work("packed_attention_bwd (time)", PATCHES * HEADS // 4, PATCHES * HEADS // 4, 7, straight=True),
    streamed("flash_attention_dq (space)", 256, 64, 64, 6),
    streamed("flash_attention_dkdv (space)", 256, 64, 64, 6),
    streamed("flash_attention_dq (space-1024)", 1024, 64, 64, 6),
    streamed("flash_attention_dkdv (space-1024)", 1024, 64, 64, 6),
]
# forward: two fused passes, an attention, four products; training adds the GELU's pass; products thrice
FORWARD = {"gate_residual_norm_modulate_fwd": 2}
TRAINING = FORWARD | {"gate_residual_norm_modulate_bwd": 2, "bias_gelu_fwd": 1, "bias_gelu_bwd": 1}
SPACE_BWD = {"flash_attention_dq (space)": 1, "flash_attention_dkdv (space)": 1}
BLOCKS = {
    "space, forward": (FORWARD | {"flash_attention_fwd (space)": 1}, 1),
    "time, forward": (FORWARD | {"packed_attention_fwd (time)": 1}, 1),
    "space, training": (TRAINING | {"flash_attention_fwd (space)": 1} | SPACE_BWD, 3),
    "time, training": (TRAINING | {"packed_attention_fwd (time)": 1, "packed_attention_bwd (time)": 1}, 3),
}


def microseconds(work: Work, record: dict, card: str) -> dict[str, float]:
    """What each unit needs for one clip, over all multiprocessors."""
    around = record["total"] - record["issued"] if work.programs and not work.straight else 0
    issued = (record["issued"] * work.turns + around * work.programs) * record["warps"] / 4
    clocks = {
        "bytes": work.passes * U / (CARDS[card][0] / CLOCK),
        "issue": issued / MULTIPROCESSORS,
        "MMA": record["fmas"] * record["warps"] * work.turns / FMAS / MULTIPROCESSORS,
        "MUFU": record["special"] * record["warps"] * 32 * work.turns / SPECIAL / MULTIPROCESSORS,
    }
    return {unit: 1e6 * n / CLOCK for unit, n in clocks.items()}


def products(card: str) -> float:
    """Microseconds of a block's four products for one clip, forward, at the card's GEMM rate."""
    return 1e6 * 24 * D * D * TOKENS / CARDS[card][1]


def tables(records: list[dict]) -> str:
    found = {r["name"]: r for r in records if (r["size"], r["dtype"], r["target"]) == ("XL", "bf16", 90)}
    version = next(iter(found.values()))["triton"]
    times = {w.name: {card: microseconds(w, found[w.name], card) for card in CARDS} for w in KERNELS}
    lines = [
        f"One clip of 16 x 256 tokens at width {D}, us; sm_90 by Triton {version}, {MULTIPROCESSORS} multiprocessors",
        f"at {CLOCK / 1e9} GHz. Arithmetic, no measurement: the largest of its four is a kernel's floor.",
        "`space-1024` is as many tokens, a quarter of a clip of 512 px.",
        "",
        "| kernel | bytes, H200 | bytes, H100 | issue | MMA | MUFU | floor, H200 | floor, H100 |",
        "|---" * 8 + "|",
    ]
    for name, cards in times.items():
        h200, h100 = cards["H200"], cards["H100"]
        cells = [h200["bytes"], h100["bytes"], h200["issue"], h200["MMA"], h200["MUFU"]]
        floors = [f"{max(c.values()):.1f} ({max(c, key=c.__getitem__)})" for c in (h200, h100)]
        lines.append(f"| `{name}` | " + " | ".join([f"{n:.1f}" if n else "" for n in cells] + floors) + " |")
    lines += ["", "A block of XL/2, us a clip, products at the GEMM rate and everything else at the floors above:", ""]
    lines += ["| block | " + " | ".join(f"products, {c} | the rest, {c} | together, {c}" for c in CARDS) + " |"]
    lines += ["|---" * (1 + 3 * len(CARDS)) + "|"]
    for block, (launches, times_products) in BLOCKS.items():
        cells = []
        for card in CARDS:
            rest = sum(n * max(times[name][card].values()) for name, n in launches.items())
            gemm = times_products * products(card)
            cells += [f"{gemm:.0f}", f"{rest:.0f}", f"{gemm + rest:.0f}"]
        lines.append(f"| {block} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(page: str, text: str) -> str:
    """The page with its prediction replaced."""
    begin, end = "<!-- predicted by benchmarks/predict.py -->\n", "<!-- end of prediction -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"{DOCS}: wants one place between {begin.strip()} and {end}")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    found = [record for path in sys.argv[1:] for record in json.loads(Path(path).read_text())]
    DOCS.write_text(write(DOCS.read_text(), tables(found)))
