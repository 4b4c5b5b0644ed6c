"""Trains three small models on moving shapes and keeps them: classes, joint with images, and captions.

python examples/shapes_models.py --out shapes-models            all three, eight to fifteen minutes each on two cores
python examples/shapes_models.py --out shapes-models --only text

Each is judged by a classifier of the same shapes: at least 80 % of its samples are to be recognised. Speed and quality
of sampling are measured on these runs, so their recipes stay as they are. A run that is complete is not trained again,
and one that was stopped goes on.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import latte_fast
from latte_fast.cli.demo import NAMES, WANTED, demo_config
from latte_fast.data.encode_text import encode_text
from latte_fast.data.shapes import CLASSES
from latte_fast.data.shards import INDEX
from latte_fast.evaluation.shapes_classifier import share_recognised, train_recogniser
from latte_fast.media.pixels import normalise
from latte_fast.media.write import write_sheet
from latte_fast.training import ModelConfig, TrainConfig, Trainer, alone

STEPS = {"classes": 4800, "joint": 4800, "text": 7000}
GUIDANCE = {"classes": 4.0, "joint": 4.0, "text": 4.0}
CAPTIONS = {name: f"a {name.split()[0]} that goes {name.split()[1]}" for name in CLASSES}
EXPECTED = 0.8


class WordVectors:
    """A text encoder without a network: each word of a caption is a fixed random vector."""

    name, channels, tokens = "word-vectors", 32, 8

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        words = [[*caption.split(), "</s>"][: self.tokens] for caption in captions]
        padded = [row + ["<pad>"] * (self.tokens - len(row)) for row in words]
        text = torch.stack([torch.stack([self.vector(word) for word in row]) for row in padded])
        mask = torch.tensor([[i < len(row) for i in range(self.tokens)] for row in words])
        return text, mask

    def surplus(self, caption: str) -> int:
        return max(0, len(caption.split()) + 1 - self.tokens)

    def vector(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:6], "big")
        return torch.randn(self.channels, generator=torch.Generator().manual_seed(seed))


def classes_config(out: Path, steps: int) -> TrainConfig:
    """The demo's model and recipe."""
    return demo_config(str(out / "classes"), steps)


def joint_config(out: Path, steps: int) -> TrainConfig:
    """Two single images beside each clip."""
    return replace(demo_config(str(out / "joint"), steps), images=2)


def text_config(out: Path, steps: int) -> TrainConfig:
    """LatteT2V of three pairs of blocks, told a caption instead of a class."""
    texts = out / "captions"
    if not (texts / INDEX).is_file():
        encode_text({name: CAPTIONS[name] for name in NAMES}, texts, WordVectors(), dtype="float32")
    base = demo_config(str(out / "text"), steps)
    model = ModelConfig(patch_size=6, hidden_size=128, depth=6, num_heads=4, learn_sigma=False)
    return replace(base, model=model, data=replace(base.data, text=str(texts)))


CONFIGS: dict[str, Callable[[Path, int], TrainConfig]] = {
    "classes": classes_config,
    "joint": joint_config,
    "text": text_config,
}


def train(config: TrainConfig) -> float:
    """Trains to the last step, or goes on with what is there; returns the seconds it took."""
    begin = time.perf_counter()
    resume = (Path(config.out) / "config.yaml").is_file()
    if Trainer(config, resume=resume).run() < config.steps:
        raise SystemExit(f"shapes_models: {config.out} stopped before its last step; the same command goes on")
    return time.perf_counter() - begin


def judge(run: Path, guidance: float, per_class: int, classifier: Callable[[Tensor, Tensor], float]) -> float:
    """Draws every class in turn, writes a sheet of them, and returns the share that the classifier recognises."""
    trained = latte_fast.load(run, device=alone().device)
    wanted = [CAPTIONS[name] for name in NAMES] if trained.adapter.labels == "captions" else NAMES
    count = per_class * len(NAMES)
    drawn = latte_fast.sample(trained, classes=wanted, samples=count, guidance=guidance, batch=len(NAMES))
    assert drawn is not None
    large = drawn.videos[: len(NAMES)].repeat_interleave(4, 2).repeat_interleave(4, 3)
    write_sheet(run / "samples.png", list(large), NAMES)
    return classifier(normalise(drawn.videos.movedim(-1, -3)), torch.arange(len(NAMES)).repeat(per_class))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("shapes-models"), help="folder of the three runs")
    parser.add_argument("--only", choices=tuple(CONFIGS), help="one of the models instead of all three")
    parser.add_argument("--steps", type=int, help="number of updates, by default what each recipe needs")
    parser.add_argument("--per-class", type=int, default=8, help="number of samples of each class that are judged")
    parser.add_argument("--classifier-steps", type=int, default=400, help="number of updates of the classifier")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    network, share = train_recogniser(4, 24, WANTED, steps=given.classifier_steps, progress=True)
    print(f"the classifier recognises {share:.0%} of clips that it was not trained on")
    results = {}
    for name in [given.only] if given.only else CONFIGS:
        config = CONFIGS[name](given.out, given.steps or STEPS[name])
        seconds = train(config)
        found = judge(Path(config.out), GUIDANCE[name], given.per_class, lambda v, t: share_recognised(network, v, t))
        results[name] = {"recognised": found, "seconds": round(seconds), "steps": config.steps}
        print(f"{name}: {found:.0%} of its samples are recognised, trained in {seconds / 60:.1f} minutes")
        (given.out / f"{name}.json").write_text(json.dumps(results[name], indent=1) + "\n")
    poor = [name for name, result in results.items() if result["recognised"] < EXPECTED]
    if poor:
        raise SystemExit(f"shapes_models: fewer than {EXPECTED:.0%} recognised: {', '.join(poor)}")


if __name__ == "__main__":
    main()
