"""Trains a small 3D-VQGAN on moving shapes and judges what it decodes of clips that it was not trained on.

python examples/vqgan_shapes.py --out vqgan-shapes          five minutes on one core
python examples/vqgan_shapes.py --out vqgan-shapes --steps 200

Three things are expected of it: the error of pixels falls to a fifth, the perplexity of the codes is at least 64, and a
classifier of the same shapes recognises at least 90 % of the decoded clips. A run that was stopped goes on.
"""

import argparse
import time
from pathlib import Path

import torch
import vqgan_run
from torch import Tensor

from latte_fast import VQGAN
from latte_fast.cli.demo import NAMES, OUTLINES, WANTED
from latte_fast.data import DataConfig
from latte_fast.evaluation.shapes_classifier import shapes_batch, share_recognised, train_recogniser
from latte_fast.media.pixels import to_pixels
from latte_fast.media.write import write_sheet
from latte_fast.models.tats.codebook import perplexity_of
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.runs.codec import load_run_vqgan
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import TrainConfig

FRAMES, SIZE = 4, 24
STEPS = 2000
PER_CLASS = 24
FALL, PERPLEXITY, RECOGNISED = 5.0, 64.0, 0.9


def config(out: Path, steps: int) -> TrainConfig:
    """A 3D-VQGAN of 288 tokens a clip and 256 codes: with 72, decoded triangles are taken for circles."""
    model = VQGANConfig(n_hiddens=8, downsample=(2, 2, 2), embedding_dim=16, n_codes=256)
    data = DataConfig(kind="shapes", clips=12000, outlines=OUTLINES)
    return vqgan_run.settings(out, model, data, FRAMES, SIZE, steps, batch=8, saves=4)


@torch.no_grad()
def decoded(model: VQGAN, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what the model decodes of clips (B, F, 3, H, W), and their tokens."""
    tokens = torch.cat([model.encode(part.movedim(1, 2)) for part in clips.split(16)])
    made = torch.cat([model.decode(part) for part in tokens.split(16)])
    return made.movedim(2, 1).clamp(-1, 1), tokens


def judge(run: Path, classifier_steps: int, per_class: int) -> dict[str, float]:
    """Judges a run by clips that it has not seen, and writes a sheet of them beside what is decoded."""
    model = load_run_vqgan(run)
    labels = torch.arange(len(WANTED)).repeat(per_class)
    clips = shapes_batch(torch.tensor(WANTED)[labels], (1 << 31) + torch.arange(len(labels)), FRAMES, SIZE)
    made, tokens = decoded(model, clips)
    first = read_log(run / LOG)[0]["l1"] / 4.0  # without its weight, on values that are half of [-1, 1]
    error = (made - clips).abs().mean().item() / 2
    classifier, on_clips = train_recogniser(FRAMES, SIZE, WANTED, steps=classifier_steps, progress=True)
    counts = torch.bincount(tokens.flatten(), minlength=model.config.n_codes)
    rows = torch.stack([to_pixels(clips[: len(NAMES)]), to_pixels(made[: len(NAMES)])], 1).flatten(0, 1)
    large = rows.repeat_interleave(4, 2).repeat_interleave(4, 3)
    write_sheet(run / "decoded.png", list(large), [text for name in NAMES for text in (name, "decoded")])
    return {
        "error_before": first,
        "error_after": error,
        "psnr": -10 * ((made - clips) / 2).square().mean().log10().item(),
        "perplexity": perplexity_of(counts).item(),
        "codes_used": int((counts > 0).sum()),
        "classifier_on_clips": on_clips,
        "recognised": share_recognised(classifier, made, labels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("vqgan-shapes"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of updates")
    parser.add_argument(
        "--per-class", type=int, default=PER_CLASS, help="number of clips of each class that are judged"
    )
    parser.add_argument("--classifier-steps", type=int, default=400, help="number of updates of the classifier")
    given = parser.parse_args()
    begin = time.perf_counter()
    vqgan_run.train(config(given.out, given.steps), "vqgan_shapes")
    seconds = time.perf_counter() - begin
    found = judge(given.out, given.classifier_steps, given.per_class)
    vqgan_run.keep(given.out, found | {"seconds": round(seconds)})
    print(f"error {found['error_before']:.4f} -> {found['error_after']:.4f}, {found['psnr']:.1f} dB")
    print(f"perplexity {found['perplexity']:.0f}, {found['codes_used']} codes in use")
    print(f"{found['recognised']:.0%} recognised, {found['classifier_on_clips']:.0%} of the clips themselves")
    fall = found["error_before"] / found["error_after"]
    if fall < FALL or found["perplexity"] < PERPLEXITY or found["recognised"] < RECOGNISED:
        rule = f"the error falls {FALL:.0f}x, perplexity is {PERPLEXITY:.0f} and {RECOGNISED:.0%} are recognised"
        raise SystemExit(f"vqgan_shapes: less than expected, which is that {rule}")


if __name__ == "__main__":
    main()
