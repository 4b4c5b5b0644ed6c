"""latte-fast evaluate."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import tyro

from latte_fast.cli.device import pick_device


def by_default(text: str) -> object:
    # of flags that are refused where they would do nothing, so that a given one has to be told from a default
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


def evaluate(
    samples: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")],
    detector: Path,
    metric: Literal["fvd", "fid", "is"] = "fvd",
    real: Annotated[Path | None, by_default("none")] = None,
    kind: Annotated[Literal["videos", "ffs", "sky", "ucf101", "taichi", "frames"] | None, by_default("none")] = None,
    clips: Annotated[int | None, by_default("2048")] = None,
    frames: Annotated[int | None, by_default("16")] = None,
    interval: Annotated[int | None, by_default("3")] = None,
    images: Annotated[int | None, by_default("50000")] = None,
    size: int = 256,
    seed: int = 0,
    batch: Annotated[int | None, by_default("8 clips or 64 frames")] = None,
    device: Annotated[str, by_default("cuda where there is one")] = "",
    workers: int = 2,
    real_stats: Annotated[Path | None, by_default("none")] = None,
    index: str = "",
    out: Annotated[Path | None, by_default("SAMPLES/METRIC.json")] = None,
) -> None:
    """Measure samples: how far they are from a real set (FVD, FID), or the inception score of clips.

    Published FVD is of 2048 samples and 2048 clips of the training set, 16 frames, 256x256. Draw as many first:
    latte-fast sample RUN --count 2048 --out ucf-samples.

    The detector is a TorchScript file that you bring; none is downloaded. Published numbers are of i3d_torchscript.pt
    (fvd), inception-2015-12-05.pt (fid) and c3d_ucf101.pt (is). docs/evaluation.md has the protocol.

    Example: latte-fast evaluate ucf-samples --real UCF-101 --kind ucf101 --detector i3d_torchscript.pt

    Args:
        samples: folder that `latte-fast sample` wrote (mp4, gif, npz), or any of films or folders of pictures.
        detector: TorchScript file of the network that looks at clips (fvd, is) or frames (fid).
        metric: fvd of clips, fid of single frames, is of clips without a real set.
        real: the real set's folder; may be left out where REAL_STATS is there.
        kind: how the real set is laid out, as for `latte-fast encode`.
        clips: taken of each set at most.
        frames: of a clip.
        interval: frames of a real video from one of the clip's to the next; samples are taken frame by frame.
        images: frames taken of each set at most, for fid.
        size: height and width in pixels at which both sets meet the detector.
        seed: of the choice of videos, starts and frames.
        batch: clips or frames at once; another one may change the last digits.
        device: on which the detector runs.
        workers: processes that decode.
        real_stats: .safetensors file that keeps the real set's features for the next evaluation; where it is there
            it is used, if it was made with the same detector, set and settings.
        index: file that keeps the real videos' frame times for the next run.
        out: new .json file with the number and everything needed to repeat it.
    """
    # PyAV is loaded by those who read videos
    from latte_fast.evaluation import Evaluation, write_result
    from latte_fast.evaluation import evaluate as measure
    from latte_fast.evaluation.result import check_out

    logging.basicConfig(format="%(message)s")
    device = pick_device(device, "evaluate")
    try:
        out = check_out(out or samples / f"{metric}.json")
        how = Evaluation(
            samples, detector, metric, real or "", kind or "", clips, frames, interval, images, size, seed, batch,
            workers, device, real_stats or "", index,
        )  # fmt: skip
        result = measure(how)
        # before anything may keep it from being written
        print("\n".join(result.lines()), flush=True)
        write_result(out, result)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(f"  {out}")
