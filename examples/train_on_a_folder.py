"""Trains a small class-conditional Latte on a folder of films, one subfolder a class.

python examples/train_on_a_folder.py FILMS --out runs/films
"""

import argparse

from latte_fast.data import DataConfig
from latte_fast.training import ModelConfig, OptimConfig, TrainConfig, Trainer


def config(films: str, out: str, size: int, steps: int) -> TrainConfig:
    """Pixels as they are; for larger films write latents first (`latte-fast encode`) and train with kind "latents"."""
    return TrainConfig(
        out=out,
        model=ModelConfig(patch_size=4, hidden_size=128, depth=6, num_heads=4),
        data=DataConfig(kind="videos", path=films, interval=1, short="loop"),
        optim=OptimConfig(lr=5e-4, rate="cosine", warmup=100, clip=1.0, ema=0.99, ema_warmup=True),
        frames=8,
        size=size,
        steps=steps,
        batch=8,
        log_every=max(1, steps // 20),
        save_every=max(1, steps // 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("films", help="folder of films, one subfolder a class")
    parser.add_argument("--out", default="runs/films", help="new folder for the run")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="number of updates")
    given = parser.parse_args()
    Trainer(config(given.films, given.out, given.size, given.steps)).run()
    print(f"trained; next: python examples/sample_in_python.py {given.out}")


if __name__ == "__main__":
    main()
