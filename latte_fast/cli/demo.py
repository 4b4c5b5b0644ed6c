"""latte-fast demo: the doctor's report, a comparison with the oracle, a small model trained, sampled and judged."""

import shutil
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from latte_fast import info
from latte_fast.cli.compare import compare, table
from latte_fast.cli.endings import sentence
from latte_fast.codecs.vae import open_vae
from latte_fast.config import PRESETS
from latte_fast.data import DataConfig
from latte_fast.data.shapes import CLASSES, DIRECTIONS
from latte_fast.evaluation.shapes_classifier import share_recognised, train_recogniser
from latte_fast.media import write
from latte_fast.media.pixels import normalise
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.plot import plot_run, pyplot
from latte_fast.runs.report import Shown, write_report
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import trained_source
from latte_fast.training import DiffusionConfig, ModelConfig, OptimConfig, TrainConfig, Trainer, load_trained

ENLARGEMENT = 8  # of the films, whose clips are only 24 pixels wide
STEPS, GUIDANCE = 4800, 4.0
# at 24 pixels a square differs from a circle by seven pixels, which takes longer to learn than a demo should last
OUTLINES = ("circle", "triangle")
WANTED = [i for i, name in enumerate(CLASSES) if name.split()[0] in OUTLINES]
NAMES = [CLASSES[i] for i in WANTED]


def demo_config(out: str, steps: int, batch: int = 8) -> TrainConfig:
    """Returns the configuration of a Latte small enough for two cores.

    It predicts x_0 under the linear schedule, trained mostly on time steps in the middle. Predicting v, or x_0 under a
    cosine schedule or on less noisy time steps, left patches that did not move together after as many steps.
    """
    return TrainConfig(
        out=out,
        model=ModelConfig(patch_size=6, hidden_size=128, depth=6, num_heads=4, learn_sigma=False),
        data=DataConfig(kind="shapes", clips=12000, outlines=OUTLINES),
        diffusion=DiffusionConfig(prediction="start_x", timesteps="lognormal"),
        optim=OptimConfig(
            lr=2e-3, betas=(0.9, 0.99), rate="cosine", warmup=min(50, steps), clip=1.0, ema=0.995, ema_warmup=True
        ),
        frames=4,
        size=24,
        steps=steps,
        batch=batch,
        precision="bf16" if fast_bf16() else "fp32",
        save_every=max(1, steps // 2),
        keep=1,
    )


def fast_bf16() -> bool:
    """Whether this machine multiplies matrices faster in bf16 than in fp32."""
    return torch.cuda.is_available() or bool(
        torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    )


def demo(
    out: str = "demo",
    model: str = "Latte-S/2",
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16",
    repeats: int = 3,
    steps: int = STEPS,
    per_class: int = 8,
    guidance: Annotated[float, tyro.conf.arg(aliases=["--scale"])] = GUIDANCE,
    classifier: int = 400,
) -> None:
    """Compare the fast model with the oracle; train a small Latte on moving shapes, sample it, and judge the samples.

    Args:
        out: folder for report.html, samples.mp4, samples.png, loss.png and the run; the files of an earlier demo are
            replaced.
        model: preset to compare with the oracle, Latte-{S,B,L,XL}/{2,4,8}.
        dtype: data type of the compared models' weights and activations.
        repeats: number of timed runs of each model, interleaved; the fastest is shown.
        steps: number of training steps.
        per_class: number of samples of each of the 8 classes.
        guidance: scale of classifier-free guidance of the samples, 1 is none.
        classifier: number of training steps of the classifier that judges the samples.
    """
    if model not in PRESETS:
        raise SystemExit(f"demo: model must be one of {', '.join(PRESETS)}, got {model}")
    for name, value in (("repeats", repeats), ("steps", steps), ("per_class", per_class), ("classifier", classifier)):
        if value < 1:
            raise SystemExit(f"demo: {name} must be at least 1, got {value}")
    try:
        pyplot()
    except RuntimeError as error:
        raise SystemExit(sentence(error, "demo")) from None
    print(info.report(), "\n")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compared = compare(model, getattr(torch, dtype), repeats, device)
    print(f"{model}, one clip 16x256x256, {dtype} on {device}; error against the oracle in fp32")
    print(table(compared), "\n")
    for warning in compared.slow:
        # no error, as other programs on the machine can cause this
        print(f"warning: {warning}\n")
    folder = Path(out)
    fallen = train(folder, steps)
    videos, labels = samples(folder, per_class, guidance, device)
    judge(videos, labels, classifier)
    problems = [compared.wrong] if compared.wrong else []
    problems += [] if fallen else ["the loss did not fall to half of its first value"]
    if problems:
        raise SystemExit("demo: " + "; ".join(problems))


def train(folder: Path, steps: int) -> bool:
    """Trains from scratch; returns whether the loss fell to half of its first value."""
    run = folder / "run"
    if (run / LOG).is_file():
        shutil.rmtree(run)
    print("training a class-conditional Latte on moving shapes")
    if Trainer(demo_config(str(run), steps)).run() < steps:
        raise SystemExit("demo: stopped before the last step of training")
    losses = [line["loss"] for line in read_log(run / LOG)]
    last = losses[-max(1, len(losses) // 10) :]
    print(f"loss {losses[0]:.4f} -> {sum(last) / len(last):.4f}; curves in {plot_run(run, folder / 'loss.png')}")
    return sum(last) / len(last) < 0.5 * losses[0]


def samples(folder: Path, per_class: int, guidance: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Samples every class, writes a film and a contact sheet; returns uint8 (B, F, H, W, 3) and the labels."""
    trained = load_trained(folder / "run", device=device)
    source = trained_source(trained, open_vae("identity", device, torch.float32), NAMES)
    request = Request(steps=50, method="ddim", scale=guidance)
    drawn = [source.draw(request, range(len(NAMES) * i, len(NAMES) * (i + 1)))[0] for i in range(per_class)]
    videos = torch.cat(drawn)
    labels = torch.arange(len(NAMES)).repeat(per_class)
    large = videos[: len(NAMES)].repeat_interleave(ENLARGEMENT // 2, 2).repeat_interleave(ENLARGEMENT // 2, 3)
    write.write_sheet(folder / "samples.png", list(large), NAMES)
    # one row for each shape, one column for each direction
    grid = videos[: len(NAMES)].unflatten(0, (-1, len(DIRECTIONS)))  # (2, 4, F, H, W, 3)
    film = grid.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
    film = film.repeat_interleave(ENLARGEMENT, 1).repeat_interleave(ENLARGEMENT, 2)
    write.write_mp4(folder / "samples.mp4", film.repeat(6, 1, 1, 1), fps=4)
    print(f"samples in {folder / 'samples.mp4'} and {folder / 'samples.png'}")
    shown = [Shown(video.numpy(), NAMES[label]) for video, label in zip(videos, labels.tolist(), strict=True)]
    page = write_report(folder / "run", folder / "report.html", shown, info.report())
    print(f"films, curves and settings on one page: {page}")
    return videos, labels


def judge(videos: Tensor, labels: Tensor, steps: int = 400) -> float:
    """Prints and returns the share of samples that a classifier trained on the same shapes recognises."""
    _, frames, size = videos.shape[:3]
    classifier, on_clips = train_recogniser(frames, size, WANTED, steps=steps, progress=True)
    share = share_recognised(classifier, normalise(videos.movedim(-1, -3)), labels)
    verdict = "" if share >= 0.8 else ", fewer than the 80 % expected"
    print(f"a classifier ({on_clips:.0%} on unseen clips) recognises {share:.0%} of {len(labels)} samples{verdict}")
    return share
