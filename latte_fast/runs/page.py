"""Parts of a self-contained HTML page: playing films, curves, tables. Everything that is shown is escaped."""

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from latte_fast.media.picture import fit
from latte_fast.media.write import encode_png

# largest height, width and number of frames of a film in a page, as its frames lie side by side in one picture
SIDE, FRAMES = 128, 32
FPS = 8
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: .2em .8em .2em 0; text-align: left; vertical-align: top; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px; }
figure { display: inline-block; margin: 0 .6em .8em 0; vertical-align: top; }
figcaption { font-size: 12px; color: #555; max-width: 12em; overflow-wrap: anywhere; }
.film { background-repeat: no-repeat; animation: play linear infinite; image-rendering: pixelated; }
.film:hover { animation-play-state: paused; }
@keyframes play { from { background-position: 0 0; } to { background-position: 100% 0; } }
svg { background: #fff; border: 1px solid #ddd; } polyline { fill: none; stroke: #1f6feb; stroke-width: 1.5; }
svg text { font-size: 11px; fill: #555; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Returns a whole document, which loads nothing from elsewhere."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def section(title: str, *parts: str) -> str:
    return "\n".join([f"<section><h2>{html.escape(title)}</h2>", *parts, "</section>"])


def film(video: np.ndarray, caption: str) -> str:
    """Returns a film that plays by itself, uint8 (F, H, W, 3): one picture of all frames, moved a frame at a time.

    Only style is needed for it, no script and no codec; the pointer on it stops it.
    """
    places = np.linspace(0, len(video) - 1, min(len(video), FRAMES)).round().astype(int)
    video = video[places]
    if max(video.shape[1:3]) > SIDE:
        video = fit(video, SIDE).permute(0, 2, 3, 1).numpy()
    frames, height, width, _ = video.shape
    picture = base64.b64encode(encode_png(np.concatenate(list(video), 1))).decode()
    # small films are enlarged by a whole factor, so that each pixel stays square
    enlarged = max(1, SIDE // max(height, width))
    style = (
        f"width:{width * enlarged}px;height:{height * enlarged}px;"
        f"background-size:{frames * 100}% 100%;background-image:url(data:image/png;base64,{picture});"
        f"animation-duration:{frames / FPS:.3g}s;animation-timing-function:steps({frames},jump-none)"
    )
    said = html.escape(caption, quote=True)
    return (
        f'<figure><div class="film" role="img" aria-label="{said}" style="{style}"></div>'
        f"<figcaption>{said}</figcaption></figure>"
    )


def curve(points: Sequence[tuple[float, float]], title: str, width: int = 330, height: int = 180) -> str:
    """Returns a curve of (x, y), whose values are finite, as a drawing with its first and last x and its range of y."""
    left, top, right, bottom = 56, 24, width - 8, height - 20
    xs, ys = zip(*points, strict=True)
    (x0, x1), (y0, y1) = ((min(values), max(values)) for values in (xs, ys))
    across, down = (right - left) / ((x1 - x0) or 1), (bottom - top) / ((y1 - y0) or 1)
    line = " ".join(f"{left + (x - x0) * across:.1f},{bottom - (y - y0) * down:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2"/>' for p in line.split())
    marks = (
        f'<text x="{left}" y="14">{html.escape(title)}</text>'
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{y1:.4g}</text>'
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">{y0:.4g}</text>'
        f'<text x="{left}" y="{height - 5}">{x0:g}</text>'
        f'<text x="{right}" y="{height - 5}" text-anchor="end">{x1:g}</text>'
    )
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="{html.escape(title, quote=True)}">'
        f'<polyline points="{line}"/>{dots if len(points) <= 30 else ""}{marks}</svg>'
    )


def table(rows: Mapping[str, object]) -> str:
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
