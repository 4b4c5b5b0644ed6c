"""Writes what docs/flexdit.md shows by the cost model: its budget table, and the picture of a layout.

python -m benchmarks.report.flexdit
"""

import re
from pathlib import Path

from latte_fast.config import PRESETS
from latte_fast.flex_config import KINDS, LAYOUTS, FlexLatteConfig, density_schedule
from latte_fast.flex_cost import block_macs, flex_cost, layout_table

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "flexdit.md", DOCS / "pictures" / "flexdit.svg"
START, END = "<!-- budget -->\n", "<!-- end of budget -->"
COLOURS = {"P": "#7fb0e0", "G": "#e8a04c", "S": "#b98ac9", "R": "#6fb58a", "D": "#9aa7b4"}
STEPS, LEFT, BAR, GAP = 50, 92, 18, 3


def table() -> str:
    """Returns the change in multiply-adds of every named layout at its preset's size, 16 frames of 256 x 256."""
    named = [
        (f"Latte-{size}/2, {name}", FlexLatteConfig(**PRESETS[f"Latte-{size}/2"], layout=name))
        for size in ("XL", "L", "B")
        for name in LAYOUTS[PRESETS[f"Latte-{size}/2"]["depth"]]
    ]
    return layout_table(named, STEPS) + "\n"


def picture(config: FlexLatteConfig) -> str:
    """Returns the SVG of a layout: tokens a frame and multiply-adds block by block, and the side of each step."""
    least, most = config.sides[0], config.sides[-1]
    dense = config.grid**2
    grid = (config.grid, config.grid)
    macs = {s: [block_macs(config, i, 1, config.num_frames, grid, s) for i in range(config.depth)]
            for s in (least, most)}  # fmt: skip
    width = LEFT + config.depth * (BAR + GAP) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 400" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]

    def text(x: float, y: float, words: str, more: str = 'fill="#555"') -> None:
        lines.append(f'<text x="{x:g}" y="{y:g}" {more}>{words}</text>')

    def rectangle(x: float, base: float, height: float, colour: str, opacity: float = 1.0) -> None:
        at = f'x="{x:g}" y="{base - height:.1f}" width="{BAR}" height="{height:.1f}"'
        lines.append(f'<rect {at} fill="{colour}" fill-opacity="{opacity:g}"/>')

    def axis(base: float, height: float, top: str) -> None:
        lines.append(f'<line x1="{LEFT - 4}" y1="{base}" x2="{width - 12}" y2="{base}" stroke="#999"/>')
        text(LEFT - 10, base - height + 10, top, 'text-anchor="end" fill="#555"')

    bold = 'font-weight="bold" fill="#222"'
    text(12, 20, f"tokens of a frame, block by block: pale at side {most}, full at side {least}", bold)
    axis(140, 100, str(dense))
    text(12, 214, "multiply-adds of each block, in G", bold)
    largest = max(max(values) for values in macs.values())
    axis(300, 70, f"{largest / 1e9:.1f}")
    for i, kind in enumerate(config.kinds):
        x, colour = LEFT + i * (BAR + GAP), COLOURS[kind]
        sparse = kind in "GS"
        for side, opacity in ((most, 0.4), (least, 1.0)):
            rectangle(x, 140, 100 * (side**2 if sparse else dense) / dense, colour, opacity)
            rectangle(x, 300, 70 * macs[side][i] / largest, colour, opacity)
        text(x + BAR / 2, 156, kind, f'text-anchor="middle" {bold}')
        text(x + BAR / 2, 170, config.axis(i)[0], 'text-anchor="middle" fill="#999" font-size="10"')
    text(12, 170, "space / time", 'fill="#999" font-size="10"')
    names = {"P": "pooling", "G": "generates", "S": "sparse", "R": "recovers", "D": "dense"}
    for i, kind in enumerate(KINDS):
        x = LEFT + i * 112
        lines.append(f'<rect x="{x}" y="180" width="12" height="12" fill="{COLOURS[kind]}"/>')
        text(x + 18, 191, f"{kind} {names[kind]}")
    schedule = density_schedule(STEPS, config.sides)
    text(12, 328, f"side of the sparse grid at each of {STEPS} steps, from noise to sample", bold)
    span = (width - LEFT - 16) / STEPS
    points = [
        f"{LEFT + k * span:.1f},{414 - 8 * side:g} {LEFT + (k + 1) * span:.1f},{414 - 8 * side:g}"
        for k, side in enumerate(schedule)
    ]
    lines.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="#b98ac9" stroke-width="3"/>')
    for side in (least, most):
        text(LEFT - 10, 418 - 8 * side, str(side), 'text-anchor="end" fill="#555"')
    return "\n".join([*lines, "</svg>\n"])


def layout_picture() -> str:
    return picture(FlexLatteConfig(**PRESETS["Latte-XL/2"]))


def with_table(page: str) -> str:
    """Returns the page with its budget table made anew."""
    return re.sub(f"{START}.*{END}", lambda _: START + table() + END, page, flags=re.DOTALL)


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text()))
    PICTURE.write_text(layout_picture())
    for size in ("XL", "L", "B"):
        result = flex_cost(FlexLatteConfig(**PRESETS[f"Latte-{size}/2"]))
        print(f"Latte-{size}/2: {result.dense / 1e9:.2f} G dense, {result.mean / 1e9:.2f} G on average")


if __name__ == "__main__":
    main()
