"""Draws films from a run: to a folder in one call, and to pixels for code of your own.

python examples/sample_in_python.py runs/films --out films-out
"""

import argparse

import latte_fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a run, or one of its checkpoints")
    parser.add_argument("--out", default="samples", help="new folder for the films")
    parser.add_argument("--steps", type=int, default=50, help="number of sampling steps")
    given = parser.parse_args()

    trained = latte_fast.load(given.run)  # the averaged weights of the newest whole checkpoint
    print(f"trained for {trained.step} steps on {len(trained.classes)} classes: {', '.join(trained.classes)}")

    latte_fast.sample(trained, samples=4, steps=given.steps, out=given.out)  # 000000.mp4 ... and samples.json

    drawn = latte_fast.sample(trained, classes=trained.classes[:1], samples=2, steps=given.steps, guidance=2.0)
    assert drawn is not None
    print(f"{tuple(drawn.videos.shape)} {drawn.videos.dtype} pixels of {drawn.names}")


if __name__ == "__main__":
    main()
