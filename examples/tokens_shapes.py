"""Films of moving shapes, made of tokens: a 3D-VQGAN, a transformer, and the two transformers of a hierarchy.

python examples/tokens_shapes.py --out tokens-shapes --at-once     some minutes on one GPU
python examples/tokens_shapes.py --out tokens-shapes --vqgan-steps 100 --steps 100 --films 8 --frames 64

Shapes leave on one side and come back on the other, so that a film of any length shows its class. The first transformer
draws films by a sliding window, the second key frames of which the third fills the gaps. A classifier of the same
shapes has to recognise at least 80 % of short clips, by shape and direction; films of 512 frames are judged window by
window, by tokens_films.py. A run that was stopped goes on with the same command.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import tokens_films
import torch
import vqgan_run
from torch import Tensor

from latte_fast.cli.demo import ENLARGEMENT, NAMES, OUTLINES, WANTED
from latte_fast.data import DataConfig
from latte_fast.data.shapes import DIRECTIONS
from latte_fast.evaluation.shapes_classifier import Recogniser, train_recogniser
from latte_fast.media.write import write_mp4, write_sheet
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.runs.config import CONFIG, TokenTraining
from latte_fast.sampling.request import Request
from latte_fast.token_films.sample import open_tokens
from latte_fast.token_films.source import TokenOptions
from latte_fast.training import OptimConfig, Ranks, TrainConfig, Trainer, start

SIZE, CLIP = tokens_films.SIZE, tokens_films.CLIP
VQGAN_FRAMES, VQGAN_STEPS, STEPS = 16, 1500, 2500
# frames of a clip, distance of the latent frames that are seen, and whether the gap between the ends is filled
PARTS = {"films": (8, 1, False), "keys": (32, 4, False), "gaps": (10, 1, True)}
PER_CLASS, RECOGNISED = 24, 0.8


def data() -> DataConfig:
    return DataConfig(kind="shapes", clips=1_000_000, outlines=OUTLINES, endless=True)


def vqgan_config(out: Path, steps: int) -> TrainConfig:
    """A 3D-VQGAN of 144 tokens for two frames, in clips that are long enough to show it a film's middle."""
    model = VQGANConfig(n_hiddens=16, downsample=(2, 2, 2), embedding_dim=16, n_codes=512)
    return vqgan_run.settings(out / "vqgan", model, data(), VQGAN_FRAMES, SIZE, steps, batch=8, saves=4)


def tokens_config(out: Path, part: str, sizes: TokenTraining, steps: int, batch: int, gpu: bool) -> TrainConfig:
    """A transformer whose clips the VQGAN encodes as they are drawn."""
    frames = PARTS[part][0]
    optim = OptimConfig(
        lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, rate="cosine", warmup=min(100, steps), clip=1.0, ema=0.995,
        ema_warmup=True,
    )  # fmt: skip
    return TrainConfig(
        out=str(out / part), objective="tokens", tokens=sizes, vae=str(out / "vqgan"), data=data(), optim=optim,
        frames=frames, size=SIZE, steps=steps, batch=batch, save_every=max(1, steps // 4), keep=1, log_every=50,
        precision="bf16-weights" if gpu else "fp32",
    )  # fmt: skip


def train(config: TrainConfig, ranks: Ranks) -> None:
    """Trains to the last step, from the beginning or from where it was stopped."""
    trainer = Trainer(config, ranks, resume=(Path(config.out) / CONFIG).is_file())
    if trainer.step < config.steps and trainer.run() < config.steps:
        raise SystemExit("tokens_shapes: stopped before the last step; the same command goes on")


def train_parts(given: argparse.Namespace, ranks: Ranks) -> None:
    """Trains the transformers one after the other, or each in a process of its own."""
    if not given.at_once:
        for part in PARTS:
            train_part(given, part, ranks)
        return
    command = [sys.executable, *sys.argv, "--only"]
    running = [subprocess.Popen([*command, part]) for part in PARTS]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("tokens_shapes: a transformer's process ended early; the same command goes on")


def train_part(given: argparse.Namespace, part: str, ranks: Ranks) -> None:
    _, every, gap = PARTS[part]
    sizes = TokenTraining(given.layers, given.heads, given.width, every, gap)
    gpu = ranks.device.type == "cuda"
    train(tokens_config(given.out, part, sizes, given.steps, given.batch, gpu), ranks)


def judge_clips(out: Path, classifier: Recogniser, per_class: int, options: TokenOptions, ranks: Ranks) -> dict:
    """Draws clips of every class; returns the share that the classifier recognises, and tokens a second."""
    gpu = ranks.device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    source = open_tokens(out / "films", "ema", None, NAMES, dtype, options, ranks.device)
    count = per_class * len(NAMES)
    request = Request(count=count, batch=count if gpu else len(NAMES), frames=PARTS["films"][0])
    source.tokens(request, range(request.batch), lambda n: None)  # compiles kernels and captures the step
    begin = time.perf_counter()
    tokens = [source.tokens(request, range(i, i + request.batch), lambda n: None)
              for i in range(0, count, request.batch)]  # fmt: skip
    tokens[-1].cpu()
    seconds = time.perf_counter() - begin
    videos = torch.cat([torch.cat(list(source.decoded(film)))[None] for some in tokens for film in some])
    show(out, videos[: len(NAMES)])
    labels = torch.arange(len(NAMES)).repeat(per_class)
    share, by_class = tokens_films.recognised(classifier, videos, labels)
    return {"recognised": share, "by_class": dict(zip(NAMES, by_class, strict=True)),
            "tokens_per_s": count * source.steps(request) / seconds, "batch": request.batch}  # fmt: skip


def show(out: Path, videos: Tensor) -> None:
    """Writes a sheet and a film of one clip of each class, a row for each shape and a column for each direction."""
    large = videos.repeat_interleave(ENLARGEMENT // 2, 2).repeat_interleave(ENLARGEMENT // 2, 3)
    write_sheet(out / "drawn.png", list(large), NAMES)
    grid = videos.unflatten(0, (-1, len(DIRECTIONS)))  # (shapes, directions, F, H, W, 3)
    film = grid.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    film = film.repeat_interleave(ENLARGEMENT, 1).repeat_interleave(ENLARGEMENT, 2)
    write_mp4(out / "drawn.mp4", film.repeat(6, 1, 1, 1), fps=4)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tokens-shapes"), help="folder of the four runs")
    parser.add_argument("--vqgan-steps", type=int, default=VQGAN_STEPS, help="number of updates of the VQGAN")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of updates of each transformer")
    parser.add_argument("--batch", type=int, default=48, help="clips of a transformer's update")
    parser.add_argument("--layers", type=int, default=4, help="blocks of a transformer")
    parser.add_argument("--heads", type=int, default=8, help="heads of a transformer")
    parser.add_argument("--width", type=int, default=256, help="width of a transformer")
    parser.add_argument("--at-once", action="store_true", help="train the three transformers at the same time")
    parser.add_argument("--only", choices=("vqgan", *PARTS), help="train this network and judge nothing")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="number of short clips drawn of each class")
    parser.add_argument("--films", type=int, default=64, help="number of long films of each kind")
    parser.add_argument("--frames", type=int, default=512, help="frames of a long film, at least 32")
    parser.add_argument("--windows", type=int, default=16, help="number of windows that a long film is judged by")
    parser.add_argument("--top-p", type=float, default=0.98, help="probability of the tokens that can be drawn")
    parser.add_argument("--context", type=int, default=1, help="latent frames that a window begins with, up to 3")
    parser.add_argument("--classifier-steps", type=int, default=400, help="number of updates of the classifier")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    begin = time.perf_counter()
    file = given.out / "judged.json"
    with start() as ranks:
        if given.only in (None, "vqgan"):
            train(vqgan_config(given.out, given.vqgan_steps), ranks)
        if given.only is not None:
            if given.only in PARTS:
                train_part(given, given.only, ranks)
            return
        seconds = {"vqgan_s": round(time.perf_counter() - begin)}
        train_parts(given, ranks)
        seconds["all_trained_s"] = round(time.perf_counter() - begin)
        classifier, on_clips = train_recogniser(
            CLIP, SIZE, WANTED, steps=given.classifier_steps, progress=True, endless=True
        )
        options = TokenOptions(top_k=0, top_p=given.top_p, context=given.context)
        found = judge_clips(given.out, classifier, given.per_class, options, ranks)
        found |= {"top_p": given.top_p, "classifier_on_clips": on_clips, **seconds}
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{found['recognised']:.0%} recognised, {on_clips:.0%} of real clips")
        print(f"{found['tokens_per_s']:.0f} tokens a second at batch {found['batch']}", flush=True)
        long = tokens_films.judge(given.out, given.films, given.frames, given.windows, options, classifier, ranks)
    found |= {"films": long, "seconds": round(time.perf_counter() - begin)}
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(tokens_films.table(long))
    problems = [] if found["recognised"] >= RECOGNISED else [f"fewer than {RECOGNISED:.0%} recognised"]
    if problems := problems + tokens_films.problems(long):
        raise SystemExit("tokens_shapes: " + "; ".join(problems))


if __name__ == "__main__":
    main()
