"""Films of moving shapes, made of tokens: a 3D-VQGAN, a transformer, and the two transformers of a hierarchy.

python examples/tokens_shapes.py --out tokens-shapes --at-once         some minutes on one GPU
python examples/tokens_shapes.py --out tokens-shapes --sizes small     shapes of one colour, three hours of one core
python examples/tokens_shapes.py --out tokens-shapes --noise 0.2       the same VQGAN and tokens, other transformers

Shapes leave on one side and come back on the other, so that a film of any length shows its class. The first transformer
draws films by a sliding window, the second key frames of which the third fills the gaps. All three are trained on parts
of long films, and with `--noise` on frames that have mistakes in them. A classifier of the same shapes has
to recognise at least 80 % of short clips, by shape and direction; films of 512 frames are judged window by window, by
tokens_films.py. A run that was stopped goes on with the same command.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tokens_data
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
from latte_fast.runs.codec import open_vqgan
from latte_fast.runs.config import CONFIG, TokenTraining
from latte_fast.sampling.request import Request
from latte_fast.token_films.sample import open_tokens
from latte_fast.token_films.source import TokenOptions
from latte_fast.training import OptimConfig, Ranks, TrainConfig, Trainer, start

CLIP = tokens_films.CLIP
# frames of a clip, distance of the latent frames that are seen, and whether the gap between the ends is filled
PARTS = {"films": (8, 1, False), "keys": (18, 4, False), "gaps": (10, 1, True)}
PER_CLASS, RECOGNISED = 24, 0.8


@dataclass(frozen=True)
class Sizes:
    """Sizes of the VQGAN and of the transformers, and how long they are trained.

    Args:
        shapes: what the films show.
        vqgan: the VQGAN; its tokens are `tokens_films.FACTOR` frames each.
        restart: count of a code below which it starts again; with more codes than a batch has tokens it is small.
        vqgan_frames: frames of a clip that the VQGAN is trained on, which are to show it a film's middle.
        vqgan_batch: clips of the VQGAN's update.
        vqgan_steps: number of updates of the VQGAN.
        stored: number of films whose tokens the transformers are trained on.
        runs: number of updates of each transformer, and clips of an update.
        lr: largest learning rate of a transformer.
        layers, heads, width: of a transformer.
    """

    shapes: tokens_films.ShapeFilms
    vqgan: VQGANConfig
    restart: float
    vqgan_frames: int
    vqgan_batch: int
    vqgan_steps: int
    stored: int
    runs: dict[str, tuple[int, int]]
    lr: float
    layers: int
    heads: int
    width: int


# 144 tokens for two frames, and 64 for shapes of one colour
SIZES = {
    "large": Sizes(
        shapes=tokens_films.ShapeFilms(24, 0), vqgan=VQGANConfig(16, (2, 2, 2), 16, 512), restart=1.0, vqgan_frames=16,
        vqgan_batch=8, vqgan_steps=1500, stored=8192, lr=1e-3, layers=4, heads=8, width=256,
        runs=dict.fromkeys(PARTS, (2500, 48)),
    ),
    "small": Sizes(
        shapes=tokens_films.ShapeFilms(16, 1), vqgan=VQGANConfig(8, (2, 2, 2), 8, 256), restart=0.5, vqgan_frames=8,
        vqgan_batch=8, vqgan_steps=5000, stored=4096, lr=2e-3, layers=4, heads=4, width=128,
        runs={"films": (1800, 16), "keys": (2800, 32), "gaps": (3200, 16)},
    ),
}  # fmt: skip


def sizes_of(given: argparse.Namespace) -> Sizes:
    sizes, names = SIZES[given.sizes], ("vqgan_steps", "stored", "layers", "heads", "width")
    runs = {part: (given.steps or steps, given.batch or batch) for part, (steps, batch) in sizes.runs.items()}
    return replace(sizes, runs=runs, **{n: getattr(given, n) for n in names if getattr(given, n) is not None})


def vqgan_config(out: Path, sizes: Sizes) -> TrainConfig:
    """A 3D-VQGAN on clips of moving shapes."""
    data = DataConfig(kind="shapes", clips=1_000_000, outlines=OUTLINES, endless=True, colours=sizes.shapes.colours)
    how = (sizes.vqgan_frames, sizes.shapes.size, sizes.vqgan_steps, sizes.vqgan_batch)
    config = vqgan_run.settings(out / "vqgan", sizes.vqgan, data, *how, saves=4)
    return replace(config, vqgan=replace(config.vqgan, restart=sizes.restart))


def tokens_config(given: argparse.Namespace, part: str, sizes: Sizes, gpu: bool) -> TrainConfig:
    """A transformer on parts of the films whose tokens are stored."""
    frames, every, gap = PARTS[part]
    steps, batch = sizes.runs[part]
    model = TokenTraining(sizes.layers, sizes.heads, sizes.width, every, gap, noise=given.noise)
    optim = OptimConfig(
        lr=sizes.lr, betas=(0.9, 0.95), weight_decay=0.01, rate="cosine", warmup=min(100, steps), clip=1.0,
        ema=0.995, ema_warmup=True,
    )  # fmt: skip
    return TrainConfig(
        out=str(tokens_films.run_of(given.out, part, given.noise)), objective="tokens", tokens=model,
        vae=str(vqgan_of(given)), data=DataConfig(kind="tokens", path=str(given.out / "tokens"), interval=1),
        optim=optim, frames=frames, size=sizes.shapes.size, steps=steps, batch=batch,
        save_every=max(1, steps // 4), keep=1, log_every=50, precision="bf16-weights" if gpu else "fp32",
    )  # fmt: skip


def vqgan_of(given: argparse.Namespace) -> Path:
    return given.vqgan or given.out / "vqgan"


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
    train(tokens_config(given, part, sizes_of(given), ranks.device.type == "cuda"), ranks)


def judge_clips(
    out: Path, run: Path, classifier: Recogniser, per_class: int, options: TokenOptions, ranks: Ranks
) -> dict:
    """Draws clips of every class; returns the share that the classifier recognises, and tokens a second."""
    gpu = ranks.device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    source = open_tokens(run, "ema", None, NAMES, dtype, options, ranks.device)
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
    parser.add_argument("--sizes", choices=tuple(SIZES), default="large", help="sizes of the networks and their runs")
    parser.add_argument("--noise", type=float, default=0.0, help="largest share of random codes in training")
    parser.add_argument("--vqgan", type=Path, help="run of a VQGAN that is used in place of one trained here")
    for name, text in (
        ("vqgan-steps", "number of updates of the VQGAN"),
        ("stored", "number of films whose tokens the transformers are trained on"),
        ("steps", "number of updates of each transformer"),
        ("batch", "clips of a transformer's update"),
        ("layers", "blocks of a transformer"),
        ("heads", "heads of a transformer"),
        ("width", "width of a transformer"),
    ):
        parser.add_argument(f"--{name}", type=int, help=f"{text}; by default that of --sizes")
    parser.add_argument("--at-once", action="store_true", help="train the three transformers at the same time")
    parser.add_argument(
        "--only", choices=("tokens", *PARTS), help="end after the tokens, or train this transformer alone"
    )
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="number of short clips drawn of each class")
    parser.add_argument("--films", type=int, default=64, help="number of long films of each kind")
    parser.add_argument("--frames", type=int, default=512, help="frames of a long film, at least 32")
    parser.add_argument("--windows", type=int, default=16, help="number of windows that a long film is judged by")
    parser.add_argument("--temperature", type=float, default=1.0, help="divisor of the logits")
    parser.add_argument("--top-p", type=float, default=0.9, help="probability of the tokens that can be drawn")
    parser.add_argument("--context", type=int, default=2, help="latent frames that a window begins with, up to 2")
    parser.add_argument("--classifier-steps", type=int, default=800, help="number of updates of the classifier")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    sizes = sizes_of(given)
    begin = time.perf_counter()
    file = given.out / "judged.json"
    with start() as ranks:
        if given.only in PARTS:
            train_part(given, given.only, ranks)
            return
        if given.vqgan is None:
            train(vqgan_config(given.out, sizes), ranks)
        codec = open_vqgan(str(vqgan_of(given)), ranks.device)
        tokens_data.write_tokens(given.out / "tokens", codec, sizes.shapes, sizes.stored)
        if given.only is not None:
            return
        seconds = {"vqgan_s": round(time.perf_counter() - begin)}
        train_parts(given, ranks)
        seconds["all_trained_s"] = round(time.perf_counter() - begin)
        classifier, on_clips = train_recogniser(
            CLIP, sizes.shapes.size, WANTED, steps=given.classifier_steps, progress=True, endless=True
        )
        options = TokenOptions(given.temperature, top_k=0, top_p=given.top_p, context=given.context)
        run = tokens_films.run_of(given.out, "films", given.noise)
        found = judge_clips(given.out, run, classifier, given.per_class, options, ranks)
        found |= {"noise": given.noise, "top_p": given.top_p, "temperature": given.temperature}
        found |= {"classifier_on_clips": on_clips, **seconds}
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{found['recognised']:.0%} recognised, {on_clips:.0%} of real clips")
        print(f"{found['tokens_per_s']:.0f} tokens a second at batch {found['batch']}", flush=True)
        work = tokens_films.Work(
            given.out, vqgan_of(given), given.noise, sizes.shapes, given.films, given.frames, options, ranks
        )
        long = tokens_films.judge(work, given.windows, classifier)
    found |= {"films": long, "seconds": round(time.perf_counter() - begin)}
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(tokens_films.table(long))
    problems = [] if found["recognised"] >= RECOGNISED else [f"fewer than {RECOGNISED:.0%} recognised"]
    if problems := problems + tokens_films.problems(long):
        raise SystemExit("tokens_shapes: " + "; ".join(problems))


if __name__ == "__main__":
    main()
