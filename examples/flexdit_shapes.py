"""Measures what FlexDiT's sparse tokens cost in quality on moving shapes: a dense Latte fine-tuned in several layouts.

python examples/flexdit_shapes.py --out flexdit-shapes

A dense model is trained until a classifier knows its samples, then converted and fine-tuned for half and a quarter of
those steps; beside it the conversion as it is, the same steps from scratch, and an ablation of two seeds: the number of
modules and of pooling blocks, and one density against three. Each part is a run that is kept: a part that is complete
is not repeated, and one that was stopped goes on. results.md, results.json and results.png are written after each.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import latte_fast
from latte_fast.cli.demo import NAMES, WANTED, demo_config
from latte_fast.config import LatteConfig
from latte_fast.data.shapes import clip
from latte_fast.evaluation.frechet import Moments, frechet_distance, moments
from latte_fast.evaluation.shapes_classifier import share_recognised, train_recogniser
from latte_fast.flex_config import FlexLatteConfig
from latte_fast.flex_cost import flex_cost
from latte_fast.media.pixels import normalise
from latte_fast.media.write import write_sheet
from latte_fast.runs.load import Trained
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.plot import pyplot, smooth
from latte_fast.training import ModelConfig, TrainConfig, Trainer, alone

DENSE_STEPS = 2500
MODEL = ModelConfig(patch_size=3, hidden_size=96, depth=16, num_heads=4, learn_sigma=False)
BASE, SIDES = "PP GSSSRD GSSSRD DD", (2, 3, 4)
FRAMES, SIZE = 4, 24
REAL = 512  # clips that samples are compared with


@dataclass(frozen=True)
class Part:
    """One model of the experiment; share is the number of its updates over the dense model's."""

    layout: str | None
    share: float
    start: bool = True  # from the dense model's weights
    sides: tuple[int, ...] = SIDES
    seed: int = 0
    ablation: bool = False


PARTS = {
    "dense": Part(None, 1.0, start=False),
    "untouched": Part(BASE, 0.0),
    "quarter": Part(BASE, 0.25),
    "half": Part(BASE, 0.5),
    "scratch": Part(BASE, 0.5, start=False),
}
ABLATION: dict[str, tuple[str, tuple[int, ...]]] = {
    "2 modules, 2 pooling blocks, sides 2 to 4": (BASE, SIDES),
    "1 module": ("PP GSSSSSSSSSRD DD", SIDES),
    "3 modules": ("PP GSRD GSRD GSRD DD", SIDES),
    "no pooling blocks": ("DD GSSSRD GSSSRD DD", SIDES),
    "4 pooling blocks": ("PPPP GSSSRD GSRD DD", SIDES),
    "side 3 at every step": (BASE, (3,)),
}
for _seed in (0, 1):
    for _name, (_layout, _sides) in ABLATION.items():
        PARTS[f"{_name}, seed {_seed}"] = Part(_layout, 0.2, sides=_sides, seed=_seed, ablation=True)


class RandomFeatures(nn.Module):
    """A small network over video with fixed random weights, (B, F, 3, H, W) -> (B, 48): means and spreads of filters.

    It is neither trained nor the classifier: the distance of its features tells sets of clips apart, no more.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv3d(3, 16, (2, 5, 5), stride=(1, 2, 2)), nn.ReLU(), nn.Conv3d(16, 24, (2, 3, 3)), nn.ReLU()
            )

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        z = self.layers(video.transpose(1, 2)).flatten(2)
        return torch.cat([z.mean(2), z.std(2)], dim=1)


class Judge:
    """The classifier of shapes, and the moments of clips that no model was trained on."""

    def __init__(self, steps: int):
        self.classifier, self.known = train_recogniser(FRAMES, SIZE, WANTED, steps=steps, progress=True)
        self.features = RandomFeatures()
        clips = [clip(WANTED[i % len(WANTED)], (1 << 30) + i, FRAMES, SIZE) for i in range(REAL)]
        self.real: Moments = moments(self.features(normalise(torch.stack(clips))))

    def __call__(self, trained: Trained, given: argparse.Namespace, ablation: bool) -> dict[str, Any]:
        """Returns the shares of samples that are recognised, by guidance, and the distance at the larger guidance."""
        result: dict[str, Any] = {"recognised": {}}
        for guidance in (4.0,) if ablation else (2.0, 4.0):
            count = given.samples * (2 if guidance == 4.0 and not ablation else 1)
            steps = max(2, given.sampling_steps // 2) if ablation else given.sampling_steps
            drawn = latte_fast.sample(
                trained, classes=NAMES, samples=count, guidance=guidance, steps=steps, batch=len(NAMES), vae="identity"
            )
            assert drawn is not None
            video = normalise(drawn.videos.movedim(-1, -3))
            labels = torch.arange(count) % len(NAMES)
            result["recognised"][f"{guidance:g}"] = share_recognised(self.classifier, video, labels)
        result["frechet"] = frechet_distance(moments(self.features(video)), self.real)
        result["sheet"] = drawn.videos[: len(NAMES)]
        return result


def config_of(name: str, given: argparse.Namespace) -> TrainConfig:
    """Returns the demo's settings with the model of a part, at a learning rate of 1e-3."""
    part = PARTS[name]
    steps = max(1, round(part.share * given.steps))
    base = demo_config(str(given.out / "runs" / name.replace(",", "").replace(" ", "-")), steps)
    model = replace(MODEL, layout=part.layout, sides=part.sides if part.layout else MODEL.sides)
    dense = given.out / "runs" / "dense" / "checkpoints" / f"step-{given.steps:07d}" / "ema.safetensors"
    return replace(
        base,
        model=model,
        optim=replace(base.optim, lr=1e-3, ema=0.99),
        # shorter parts take smaller batches too, so that all of it stays within an hour
        batch=max(1, given.batch // (2 if part.ablation else 1)),
        seed=part.seed,
        pretrained=str(dense) if part.start else None,
        graphs=torch.cuda.is_available(),
        workers=1 if torch.cuda.is_available() else None,  # who draws the clips of a step in less time than it takes
    )


def trained_part(name: str, given: argparse.Namespace) -> tuple[Trained, float]:
    """Trains a part to its last step, or goes on with what is there; returns its model and the seconds of training."""
    config = config_of(name, given)
    if PARTS[name].share == 0:
        objective: Any = Trainer(config, say=lambda text: None).objective
        return Trained(objective.learner.model.eval(), objective.adapter, config, 0), 0.0
    out, begin = Path(config.out), time.perf_counter()
    if Trainer(config, resume=(out / "config.yaml").is_file()).run() < config.steps:
        raise SystemExit(f"flexdit_shapes: {name} stopped before its last step; the same command goes on")
    return latte_fast.load(out, device=alone().device), time.perf_counter() - begin


def share_of_dense(part: Part) -> float:
    """Returns the multiply-adds of a forward over the dense model's, averaged over 50 steps."""
    if part.layout is None:
        return 1.0
    sizes = {"input_size": SIZE, "in_channels": 3, "num_frames": FRAMES, "patch_size": 3, "hidden_size": 96}
    plain = LatteConfig(**sizes, depth=16, num_heads=4, learn_sigma=False, extras=2, num_classes=len(NAMES))
    return flex_cost(FlexLatteConfig(**asdict(plain), layout=part.layout, sides=part.sides)).share


def result_file(name: str, given: argparse.Namespace) -> Path:
    return given.out / "parts" / f"{name.replace(',', '').replace(' ', '-')}.json"


def run_part(name: str, given: argparse.Namespace, judge: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Trains and judges a part, unless its result is there already."""
    file = result_file(name, given)
    if file.is_file():
        return json.loads(file.read_text())
    trained, seconds = trained_part(name, given)
    result = judge(trained, given, PARTS[name].ablation)
    write_sheet(
        file.with_suffix(".png"), list(result.pop("sheet").repeat_interleave(4, 2).repeat_interleave(4, 3)), NAMES
    )
    config = config_of(name, given)
    result |= {
        "steps": trained.step,
        "batch": config.batch,
        "seconds": round(seconds),
        "flops": share_of_dense(PARTS[name]),
    }
    file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results so far as Markdown, and what was asked of them."""
    lines = [
        "| part | layout | steps x batch | multiply-adds | guidance 2 | guidance 4 | Frechet, random net | minutes |"
    ]
    lines.append("|---" * 8 + "|")
    for name, r in results.items():
        part, seen = PARTS[name], r["recognised"]
        low = f"{seen['2']:.0%}" if "2" in seen else ""
        what = f"`{part.layout}`" if part.layout else "Latte"
        lines.append(
            f"| {name} | {what} | {r['steps']} x {r['batch']} | {r['flops']:.0%} | {low} | {seen['4']:.0%} "
            f"| {r['frechet']:.3f} | {r['seconds'] / 60:.1f} |"
        )
    if {"dense", "half", "quarter"} <= results.keys():
        dense, half, quarter = (results[name] for name in ("dense", "half", "quarter"))
        lines += ["", "| asked | found | |", "|---|---|---|"]
        best, after, early = (r["recognised"]["4"] for r in (dense, half, quarter))
        for asked, found, good in (
            ("dense: at least 90 % recognised", f"{best:.0%}", best >= 0.9),
            ("after half of the steps: at least 98 % of dense", f"{after / max(best, 1e-9):.0%}", after >= 0.98 * best),
            ("after a quarter: at least 90 % of dense", f"{early / max(best, 1e-9):.0%}", early >= 0.9 * best),
            ("Frechet distance after half: within 10 % of dense", f"{half['frechet'] / dense['frechet']:.2f} of it",
             half["frechet"] <= 1.1 * dense["frechet"]),
            ("multiply-adds: at most 0.56 of dense", f"{half['flops']:.3f}", half["flops"] <= 0.56),
        ):  # fmt: skip
            lines.append(f"| {asked} | {found} | {'yes' if good else 'no'} |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], given: argparse.Namespace) -> None:
    """Draws what is recognised, part by part, and the losses of the five main parts."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    names = list(results)[::-1]
    left.barh(names, [100 * results[name]["recognised"]["4"] for name in names], color="#4878a8")
    left.set_xlabel("samples recognised at guidance 4, %")
    for name in [n for n in results if not PARTS[n].ablation and PARTS[n].share]:
        lines = read_log(Path(config_of(name, given).out) / LOG)
        right.plot([line["step"] for line in lines], smooth([line["loss"] for line in lines], 0.05), label=name)
    right.set(xlabel="step", ylabel="loss", yscale="log")
    right.legend()
    right.grid(alpha=0.3)
    figure.savefig(given.out / "results.png", dpi=100)
    plt.close(figure)


def predict(given: argparse.Namespace) -> None:
    """Prints the minutes that all parts will take, from a few measured updates of the dense and the base model."""
    seconds = {}
    for name in ("dense", "scratch"):
        trainer = Trainer(replace(config_of(name, given), out=str(given.out / "unused")), say=lambda text: None)
        batches = trainer.batches()
        trainer.update(batches)
        begin = time.perf_counter()
        for _ in range(3):
            trainer.update(batches)
        batches.close()
        seconds[name] = (time.perf_counter() - begin) / 3 / given.batch
    training = sampling = 0.0
    for name, part in PARTS.items():
        each, config = seconds["scratch" if part.layout else "dense"], config_of(name, given)
        training += each * config.batch * (config.steps if part.share else 0)
        # a forward is a third of an update, guidance takes two of each sample
        sampling += each / 3 * 2 * given.samples * given.sampling_steps * (0.5 if part.ablation else 3)
    dense, base = seconds["dense"] * given.batch, seconds["scratch"] * given.batch
    print(f"{dense:.3f} s an update dense, {base:.3f} s in {BASE!r}, on {torch.get_num_threads()} threads")
    print(f"all parts: {training / 60:.0f} minutes of training and {sampling / 60:.0f} of sampling are expected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("flexdit-shapes"), help="folder of all runs and results")
    parser.add_argument("--steps", type=int, default=DENSE_STEPS, help="updates of the dense model; the others' follow")
    parser.add_argument("--batch", type=int, default=16, help="clips in an update, in the ablation half of them")
    parser.add_argument("--samples", type=int, default=64, help="samples of each model at guidance 2, twice that at 4")
    parser.add_argument("--sampling-steps", type=int, default=50, help="sampling steps, in the ablation half of them")
    parser.add_argument("--classifier-steps", type=int, default=400, help="number of updates of the classifier")
    parser.add_argument("--only", nargs="+", help="names of the parts to run, which need the dense one")
    parser.add_argument("--predict", action="store_true", help="print how long it will take, and stop")
    given = parser.parse_args()
    unknown = [name for name in given.only or () if name not in PARTS]
    if unknown:
        parser.error(f"--only must name some of {', '.join(PARTS)}, got {unknown[0]}")
    (given.out / "parts").mkdir(parents=True, exist_ok=True)
    names = [name for name in PARTS if given.only is None or name in given.only]
    if given.predict or not all(result_file(name, given).is_file() for name in names):
        predict(given)
    if given.predict:
        return
    judge = Judge(given.classifier_steps)
    print(f"the classifier recognises {judge.known:.0%} of clips that it was not trained on")
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = run_part(name, given, judge)
        (given.out / "results.md").write_text(table(results) + "\n")
        (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        plot(results, given)
        print(f"{name}: {results[name]['recognised']} recognised")
    print(table(results))


if __name__ == "__main__":
    main()
