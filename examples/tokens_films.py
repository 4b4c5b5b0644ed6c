"""Long films of tokens_shapes.py: drawn by a sliding window and by the hierarchy, and judged window by window.

A window's value is the Frechet distance of its features from those of as many real clips, by the features of the
classifier of shapes and, where its wheel is installed, of TransNetV2, which was trained to find cuts. Other real films
give the distance of real clips to real clips, and what the VQGAN decodes of these films' tokens its share of the rest.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latte_fast.cli.demo import NAMES, WANTED
from latte_fast.data.shapes import clip
from latte_fast.evaluation.detector import Detector
from latte_fast.evaluation.frechet import frechet_distance, moments
from latte_fast.evaluation.shapes_classifier import Recogniser, film_features, recognised_clips
from latte_fast.media.pixels import normalise, to_pixels
from latte_fast.media.write import write_mp4, write_sheet
from latte_fast.models.tats.chunks import decode_in_chunks
from latte_fast.runs.codec import open_vqgan
from latte_fast.sampling.request import Request
from latte_fast.token_films.sample import sample_tokens
from latte_fast.token_films.source import TokenOptions
from latte_fast.training import Ranks

CLIP, WINDOW = 4, 16  # frames that the classifier looks at, and frames of a window
# latent frames of two frames, of which the hierarchy draws every fourth
FACTOR, EVERY = 2, 4
KINDS = ("real", "decoded", "hierarchy", "window")
FLAT, ABOVE = 0.25, 1.5


def reachable(frames: int) -> int:
    """Returns the least number of frames, of at least `frames`, that ends with a key frame."""
    return FACTOR * (-(-(frames - FACTOR) // (FACTOR * EVERY)) * EVERY + 1)


@dataclass(frozen=True)
class ShapeFilms:
    """Films of moving shapes: side of a frame in pixels, and the number of colours, of which 0 is any."""

    size: int
    colours: int

    def films(self, numbers: Sequence[int], frames: int, seed: int = 0) -> Tensor:
        """Draws films of the classes in turn, uint8 (B, F, 3, size, size)."""
        how = (frames, self.size, True, self.colours)
        return torch.stack([clip(WANTED[i % len(WANTED)], seed + i, *how) for i in numbers])


@torch.no_grad()
def recognised(classifier: Recogniser, films: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """Returns the share of all clips of films, uint8 (B, F, H, W, 3), that are classified right; and by class."""
    right = recognised_clips(classifier, film_features(classifier, films, CLIP), labels)
    by_class = [right[labels == label].float().mean().item() for label in labels.unique()]
    return right.float().mean().item(), by_class


class Judges:
    """Features of windows, uint8 (B, F, H, W, 3) -> (n, D), of the classifier and of TransNetV2."""

    def __init__(self, classifier: Recogniser, ranks: Ranks):
        self.classifier = classifier
        self.detector: Detector | None = None
        try:
            self.detector = Detector("fvd", "transnetv2", str(ranks.device))
        except RuntimeError as error:
            print(f"tokens_films: {error}")

    @torch.no_grad()
    def __call__(self, window: Tensor) -> dict[str, Tensor]:
        frames = window.movedim(-1, -3)  # (B, F, 3, H, W)
        found = {"classifier": film_features(self.classifier, window, CLIP).flatten(0, 1)}
        if self.detector is not None:
            found["transnetv2"] = torch.cat([self.detector(part) for part in frames.split(32)])
        return found


def windows_of(films: Tensor, count: int, frames: int) -> list[Tensor]:
    """Returns windows, evenly spaced from the films' start to frame `frames`."""
    starts = [(frames - WINDOW) * i // max(1, count - 1) for i in range(count)]
    return [films[:, first : first + WINDOW] for first in starts]


@dataclass(frozen=True)
class Work:
    """Long films: folder of the runs, their VQGAN, noise and shapes, number and frames of films, how they are drawn."""

    out: Path
    vqgan: Path
    noise: float
    shapes: ShapeFilms
    count: int
    frames: int
    options: TokenOptions
    ranks: Ranks

    def named(self, kind: str) -> str:
        how = self.options
        return f"{kind}-{self.frames}-{how.top_p:g}-{how.temperature:g}-{how.context}-noise-{self.noise:g}"


def run_of(out: Path, part: str, noise: float) -> Path:
    """Returns the folder of a transformer's run."""
    return out / f"{part}-noise-{noise:g}"


def draw(work: Work, kind: str) -> tuple[Tensor, float]:
    """Draws films, or goes on with those that are there; returns them, (B, F, H, W, 3), and the seconds it took."""
    gpu = work.ranks.device.type == "cuda"
    folder, options = work.out / work.named(kind), work.options
    if kind == "hierarchy":
        options = replace(options, between=str(run_of(work.out, "gaps", work.noise)), gaps=512 if gpu else 256)
    run = run_of(work.out, "keys" if kind == "hierarchy" else "films", work.noise)
    request = Request(count=work.count, batch=work.count, frames=reachable(work.frames), format="npz")
    begin = time.perf_counter()
    dtype = torch.bfloat16 if gpu else torch.float32
    sample_tokens(run, "ema", None, NAMES, dtype, options, request, folder, work.ranks, resume=True)
    seconds = time.perf_counter() - begin
    videos = [torch.from_numpy(np.load(file)["video"]) for file in sorted(folder.glob("*.npz"))]
    return torch.stack(videos), seconds


@torch.no_grad()
def through_tokens(vqgan: Path, films: Tensor, ranks: Ranks) -> Tensor:
    """Returns what the VQGAN decodes of the films' tokens."""
    codec = open_vqgan(str(vqgan), ranks.device)
    made = []
    for some in films.split(8):
        tokens = codec.tokens(normalise(some.movedim(-1, -3)))
        parts = [to_pixels(part.movedim(1, 2).float()).cpu() for part in decode_in_chunks(codec.network, tokens, 64)]
        made.append(torch.cat(parts, 1))
    return torch.cat(made)


def judge(work: Work, windows: int, classifier: Recogniser) -> dict[str, dict]:
    """Judges real films, what the VQGAN decodes of them, and those drawn by the hierarchy and by a sliding window."""
    judges = Judges(classifier, work.ranks)
    file = work.out / f"{work.named('judged')}.json"
    against = judges(work.shapes.films(range(work.count), WINDOW, 1 << 30).movedim(2, -1))
    labels = torch.arange(work.count) % len(NAMES)
    real = work.shapes.films(range(work.count), reachable(work.frames), 1 << 31).movedim(2, -1)
    results: dict[str, dict] = {}
    for kind in KINDS:
        begin = time.perf_counter()
        seconds = 0.0
        if kind in ("real", "decoded"):
            films = real if kind == "real" else through_tokens(work.vqgan, real, work.ranks)
        else:
            films, seconds = draw(work, kind)
        cut = windows_of(films, windows, work.frames)
        results[kind] = curves(cut, judges, against)
        results[kind] |= {
            "recognised": [recognised(classifier, window, labels)[0] for window in cut],
            "drawn_s": seconds, "judged_s": time.perf_counter() - begin - seconds, "films": work.count,
        }  # fmt: skip
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{kind}: {results[kind]}", flush=True)
        if kind != "decoded":
            show(work.out / kind, films[: len(NAMES), : work.frames])
    plot(work.out / "curve.png", results)
    return results


def curves(cut: list[Tensor], judges: Judges, against: dict[str, Tensor]) -> dict[str, list[float]]:
    """Returns the distance of each window's features from the real ones, by judge."""
    rows = [judges(window) for window in cut]
    return {name: [distance(row[name], real) for row in rows] for name, real in against.items()}


def distance(a: Tensor, b: Tensor) -> float:
    """Returns the Frechet distance of features, in the space that they span, which fewer clips than features leave."""
    a, b = a.double(), b.double()
    if len(a) + len(b) < a.shape[1]:
        basis = torch.linalg.qr(torch.cat([a, b]).T).Q
        a, b = a @ basis, b @ basis
    return frechet_distance(moments(a), moments(b))


def show(path: Path, films: Tensor) -> None:
    """Writes a film of one of each class, side by side, and a sheet of eight of its frames."""
    large = films.repeat_interleave(4, 2).repeat_interleave(4, 3)
    rows = [torch.cat(list(part), dim=2) for part in large.chunk(2)]
    write_mp4(path.with_suffix(".mp4"), torch.cat(rows, dim=1), fps=12)
    step = max(1, films.shape[1] // 8)
    write_sheet(path.with_suffix(".png"), list(large[:, ::step][:, :8]), NAMES)


def plot(path: Path, results: dict[str, dict]) -> None:
    """Draws the curves of each judge; without matplotlib there is no picture."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    judges = [name for name in ("classifier", "transnetv2") if name in results["real"]]
    figure, axes = plt.subplots(1, len(judges), figsize=(5 * len(judges), 3.5), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], judges, strict=True):
        for kind, found in results.items():
            axis.plot(range(1, len(found[name]) + 1), found[name], marker=".", label=kind)
        axis.set(title=f"Frechet distance, features of {name}", xlabel="window, from start to end", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def quarters(curve: list[float]) -> list[float]:
    """Returns the mean of each quarter of a curve."""
    return [float(np.mean(part)) for part in np.array_split(curve, 4)]


def problems(results: dict[str, dict]) -> list[str]:
    """Returns what the hierarchy lacks: quarters within 25 % of their mean, which is at most 1.5 times real clips'."""
    found = []
    for name in ("classifier", "transnetv2"):
        if name not in results["hierarchy"]:
            continue
        mean, real = np.mean(results["hierarchy"][name]), np.mean(results["real"][name])
        if max(abs(part / mean - 1) for part in quarters(results["hierarchy"][name])) > FLAT:
            found.append(f"the hierarchy's curve by {name} is not flat within {FLAT:.0%}")
        if mean > ABOVE * real:
            found.append(f"the hierarchy is {mean / real:.1f} times as far as real clips by {name}, {ABOVE} expected")
    return found


def table(results: dict[str, dict]) -> str:
    judges = [name for name in ("classifier", "transnetv2") if name in results["real"]]
    lines = ["| films | recognised, by quarter | " + " | ".join(f"distance by {name}" for name in judges) + " |"]
    lines.append("|---" * (2 + len(judges)) + "|")
    for kind, found in results.items():
        shares = ", ".join(f"{100 * share:.0f} %" for share in quarters(found["recognised"]))
        far = [", ".join(f"{value:.3g}" for value in quarters(found[name])) for name in judges]
        lines.append(f"| {kind} | {shares} | " + " | ".join(far) + " |")
    return "\n".join(lines) + "\n"
