"""Trains a small 3D-VQGAN on moving shapes and a transformer on its tokens, and judges clips that it draws.

python examples/tokens_shapes.py --out tokens-shapes        about half an hour on two cores
python examples/tokens_shapes.py --out tokens-shapes --vqgan-steps 200 --steps 200

A classifier of the same shapes has to recognise at least 80 % of the drawn clips, by shape and direction. A run that
was stopped goes on with the same command.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from latte_fast.cli.demo import ENLARGEMENT, NAMES, OUTLINES, WANTED
from latte_fast.data import DataConfig
from latte_fast.data.shapes import DIRECTIONS
from latte_fast.evaluation.shapes_classifier import share_recognised, train_recogniser
from latte_fast.media.pixels import normalise
from latte_fast.media.write import write_mp4, write_sheet
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.runs.config import TokenTraining, VQGANTraining
from latte_fast.sampling.request import Request
from latte_fast.token_films.sample import open_tokens
from latte_fast.token_films.source import TokenOptions
from latte_fast.training import OptimConfig, TrainConfig, Trainer

FRAMES, SIZE = 4, 24
VQGAN_STEPS, STEPS = 2000, 3000
PER_CLASS, RECOGNISED = 24, 0.8
DRAWING = TokenOptions(top_k=64, top_p=0.92)


def common(out: Path, steps: int) -> dict:
    return {
        "out": str(out),
        "data": DataConfig(kind="shapes", clips=12000, outlines=OUTLINES),
        "frames": FRAMES,
        "size": SIZE,
        "steps": steps,
        "save_every": max(1, steps // 8),
        "keep": 1,
    }


def vqgan_config(out: Path, steps: int) -> TrainConfig:
    """A 3D-VQGAN of 72 tokens a clip and 256 codes, trained without discriminators, which shapes do not need."""
    model = VQGANConfig(n_hiddens=8, downsample=(2, 4, 4), embedding_dim=16, n_codes=256)
    return TrainConfig(
        objective="vqgan",
        vqgan=VQGANTraining(model=model, restart=1.0, start=steps),
        optim=OptimConfig(
            lr=2e-3, betas=(0.5, 0.9), rate="cosine", warmup=min(50, steps), clip=1.0, ema=0.99, ema_warmup=True
        ),
        batch=8,
        **common(out, steps),
    )


def tokens_config(out: Path, vqgan: Path, steps: int) -> TrainConfig:
    """A transformer of 0.9 million parameters, whose clips the VQGAN encodes as they are drawn."""
    return TrainConfig(
        objective="tokens",
        tokens=TokenTraining(n_layer=4, n_head=4, n_embd=128),
        vae=str(vqgan),
        optim=OptimConfig(
            lr=1.5e-3,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            rate="cosine",
            warmup=min(100, steps),
            clip=1.0,
            ema=0.995,
            ema_warmup=True,
        ),
        batch=32,
        **common(out, steps),
    )


def train(config: TrainConfig) -> None:
    resume = (Path(config.out) / "config.yaml").is_file()
    if Trainer(config, resume=resume).run() < config.steps:
        raise SystemExit("tokens_shapes: stopped before the last step; the same command goes on")


def judge(out: Path, per_class: int, classifier_steps: int) -> dict[str, float]:
    """Draws clips of every class; returns the share that a classifier recognises, and tokens a second."""
    source = open_tokens(out / "transformer", vae=str(out / "vqgan"), classes=NAMES, options=DRAWING)
    begin = time.perf_counter()
    request = Request(count=len(NAMES), batch=len(NAMES), frames=FRAMES)
    rounds = [range(i * len(NAMES), (i + 1) * len(NAMES)) for i in range(per_class)]
    videos = torch.cat([source.draw(request, numbers)[0] for numbers in rounds])  # (B, F, H, W, 3)
    seconds = time.perf_counter() - begin
    show(out, videos[: len(NAMES)])
    labels = torch.arange(len(NAMES)).repeat(per_class)
    classifier, on_clips = train_recogniser(FRAMES, SIZE, WANTED, steps=classifier_steps, progress=True)
    return {
        "recognised": share_recognised(classifier, normalise(videos.movedim(-1, -3)), labels),
        "classifier_on_clips": on_clips,
        "tokens_per_s": len(videos) * source.steps(request) / seconds,
    }


def show(out: Path, videos: Tensor) -> None:
    """Writes a sheet and a film of one clip of each class, a row for each shape and a column for each direction."""
    large = videos.repeat_interleave(ENLARGEMENT // 2, 2).repeat_interleave(ENLARGEMENT // 2, 3)
    write_sheet(out / "drawn.png", list(large), NAMES)
    grid = videos.unflatten(0, (-1, len(DIRECTIONS)))  # (shapes, directions, F, H, W, 3)
    film = grid.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    film = film.repeat_interleave(ENLARGEMENT, 1).repeat_interleave(ENLARGEMENT, 2)
    write_mp4(out / "drawn.mp4", film.repeat(6, 1, 1, 1), fps=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tokens-shapes"), help="folder of the two runs")
    parser.add_argument("--vqgan-steps", type=int, default=VQGAN_STEPS, help="number of updates of the VQGAN")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of updates of the transformer")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="number of clips drawn of each class")
    parser.add_argument("--classifier-steps", type=int, default=400, help="number of updates of the classifier")
    given = parser.parse_args()
    begin = time.perf_counter()
    train(vqgan_config(given.out / "vqgan", given.vqgan_steps))
    train(tokens_config(given.out / "transformer", given.out / "vqgan", given.steps))
    seconds = time.perf_counter() - begin
    found = judge(given.out, given.per_class, given.classifier_steps)
    (given.out / "judged.json").write_text(json.dumps(found | {"seconds": round(seconds)}, indent=1) + "\n")
    print(f"{found['recognised']:.0%} recognised, {found['classifier_on_clips']:.0%} of real clips")
    print(f"{found['tokens_per_s']:.0f} tokens a second at batch {len(NAMES)}")
    if found["recognised"] < RECOGNISED:
        raise SystemExit(f"tokens_shapes: fewer than {RECOGNISED:.0%} recognised")


if __name__ == "__main__":
    main()
