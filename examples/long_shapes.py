"""Films of moving shapes that are longer than a model's clips: which way of drawing them drifts, and how much.

python examples/long_shapes.py --out long-shapes                    two models and six kinds of films, over an hour
python examples/long_shapes.py --out long-shapes --frames 64        longer films of the same models

One model is trained with one time step a clip, the other gives half of its clips a step a frame. Each draws films of
four times its clips' length by a queue (fifo), by fused windows and by rollouts, and a classifier of the same shapes
judges every window of a clip's length. Shapes leave on one side and come back on the other, so that a film of any
length shows its class. A part that is complete is not repeated, and one that was stopped goes on.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latte_fast.cli.demo import NAMES, WANTED, demo_config
from latte_fast.evaluation.frechet import Moments, frechet_distance, moments
from latte_fast.evaluation.shapes_classifier import (
    Recogniser,
    film_features,
    recognised_clips,
    shapes_batch,
    train_recogniser,
)
from latte_fast.long_films.request import LongOptions
from latte_fast.long_films.sample import draw_films, open_long
from latte_fast.media.write import write_mp4
from latte_fast.training import TrainConfig, Trainer, alone

STEPS, SAMPLING, GUIDANCE = 12000, 12, 4.0
FRAMES, SIZE = 4, 24  # of a clip
MODELS = {"one step a clip": 0.0, "half with a step a frame": 0.5}
KINDS = ("fifo", "windows", "rollout")
LEAST = 0.8  # share of a rollout's first quarter that has to be recognised
MOST = 0.05  # of that share, what may be lost to the last quarter


def config(out: Path, frame_steps: float, steps: int) -> TrainConfig:
    base = demo_config(str(out / f"frame-steps-{frame_steps:g}"), steps)
    process = replace(base.diffusion, frame_steps=frame_steps)
    data = replace(base.data, endless=True)
    return replace(base, data=data, diffusion=process, graphs=torch.cuda.is_available())


def train(given: TrainConfig) -> float:
    """Trains to the last step, or goes on with what is there; returns the seconds it took."""
    begin = time.perf_counter()
    resume = (Path(given.out) / "config.yaml").is_file()
    if Trainer(given, resume=resume).run() < given.steps:
        raise SystemExit("long_shapes: stopped before the last step; the same command goes on")
    return time.perf_counter() - begin


def draw(run: Path, kind: str, frames: int, out: Path, **given: Any) -> tuple[Tensor, float]:
    """Draws films, (B, F, H, W, 3), or goes on with those in `out`; returns them and the forwards a frame."""
    options = LongOptions(at_once=16, insist=kind == "rollout")
    ranks = alone()
    films, request = open_long(run, kind, frames, options=options, format="npz", device=ranks.device, **given)  # type: ignore[arg-type]
    draw_films(films, request, out, ranks, resume=True)
    videos = [torch.from_numpy(np.load(file)["video"]) for file in sorted(out.glob("*.npz"))]
    one_by_one = replace(request, options=replace(request.options, at_once=1))
    return torch.stack(videos), films.forwards(one_by_one) / frames


@torch.no_grad()
def judge(films: Tensor, classifier: Recogniser, real: Moments) -> tuple[list[float], list[float]]:
    """Returns for each quarter of the films the share of windows that is recognised, and their Frechet distance."""
    labels = torch.arange(len(NAMES)).repeat(len(films) // len(NAMES))
    shares, distances = [], []
    for quarter in films.chunk(4, dim=1):
        features = film_features(classifier, quarter, FRAMES)  # (B, n, 128)
        shares.append(recognised_clips(classifier, features, labels).float().mean().item())
        distances.append(frechet_distance(moments(features.flatten(0, 1)), real))
    return shares, distances


@torch.no_grad()
def moments_of_clips(classifier: Recogniser, per_class: int, seed: int = 1 << 31) -> Moments:
    """Returns the moments of the features of real clips, whose seeds are `seed` and those after it."""
    labels = torch.tensor(WANTED).repeat(per_class)
    return moments(classifier.embed(shapes_batch(labels, seed + torch.arange(len(labels)), FRAMES, SIZE, True)))


def show(path: Path, films: Tensor) -> None:
    """Writes a film of one of each class, side by side."""
    large = films[: len(NAMES)].repeat_interleave(4, 2).repeat_interleave(4, 3)
    write_mp4(path, torch.cat(list(large), dim=2), fps=6)


def table(results: dict[str, dict]) -> str:
    lines = [
        "| model | films | forwards a frame | recognised, by quarter | feature distance, by quarter |",
        "|---|---|---|---|---|",
    ]
    for found in results.values():
        shares = ", ".join(f"{100 * share:.0f} %" for share in found["recognised"])
        far = ", ".join(f"{value:.2f}" for value in found["distance"])
        lines.append(f"| {found['model']} | {found['kind']} | {found['forwards']:.1f} | {shares} | {far} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("long-shapes"), help="folder of the runs and results")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of updates of each model")
    parser.add_argument("--frames", type=int, default=4 * FRAMES, help="frames of a film, a multiple of 16")
    parser.add_argument("--per-class", type=int, default=12, help="number of films of each class")
    parser.add_argument(
        "--sampling-steps", type=int, default=SAMPLING, help="number of sampling steps, a multiple of 4"
    )
    parser.add_argument("--real", type=int, default=100, help="number of real clips of each class")
    parser.add_argument("--classifier-steps", type=int, default=400, help="number of updates of the classifier")
    given = parser.parse_args()
    if given.frames % (4 * FRAMES) or given.sampling_steps % FRAMES:
        raise SystemExit(f"long_shapes: frames must be a multiple of {4 * FRAMES}, and steps of {FRAMES}")
    given.out.mkdir(parents=True, exist_ok=True)
    classifier, share = train_recogniser(
        FRAMES, SIZE, WANTED, steps=given.classifier_steps, progress=True, endless=True
    )
    print(f"the classifier recognises {share:.0%} of clips that it was not trained on")
    real = moments_of_clips(classifier, given.real)
    file = given.out / f"results-{given.frames}.json"
    results: dict[str, dict] = json.loads(file.read_text()) if file.is_file() else {}
    for model, frame_steps in MODELS.items():
        run = config(given.out, frame_steps, given.steps)
        print(f"{model}: trained in {train(run) / 60:.1f} minutes")
        for kind in KINDS:
            name = f"{model}, {kind}"
            if name in results:
                continue
            begin = time.perf_counter()
            drawn = given.out / f"{kind}-{frame_steps:g}-{given.frames}"
            asked = {"samples": given.per_class * len(NAMES), "batch": len(NAMES), "classes": NAMES}
            asked |= {"steps": given.sampling_steps, "guidance": GUIDANCE}
            films, forwards = draw(Path(run.out), kind, given.frames, drawn, **asked)
            show(Path(f"{drawn}.mp4"), films)
            shares, distances = judge(films, classifier, real)
            results[name] = {"model": model, "kind": kind, "recognised": shares, "distance": distances,
                             "forwards": forwards, "seconds": round(time.perf_counter() - begin)}  # fmt: skip
            file.write_text(json.dumps(results, indent=1) + "\n")
    # as many as the windows of a quarter
    few = moments_of_clips(classifier, given.per_class * given.frames // (4 * FRAMES), 1 << 32)
    text = (
        table(results) + f"\nOther real clips, as many as in a quarter, are {frechet_distance(few, real):.2f} away.\n"
    )
    (given.out / f"results-{given.frames}.md").write_text(text)
    print(f"of real clips the classifier recognises {share:.0%}\n{text}")
    first, *_, last = results["half with a step a frame, rollout"]["recognised"]
    if first < LEAST or last < first - MOST:
        rule = f"be recognised at {LEAST:.0%} and lose at most {MOST:.0%}"
        raise SystemExit(f"long_shapes: rollouts must {rule}, got {first:.0%} and then {last:.0%}")


if __name__ == "__main__":
    main()
