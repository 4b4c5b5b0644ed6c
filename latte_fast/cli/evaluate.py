"""latte-fast evaluate."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence


def by_default(text: str) -> object:
    # the default in --help of a flag that is None unless given, as it is refused where it would have no effect
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
    """Measure samples: how far they are from a real set (FVD, FID), or their inception score.

    Published FVD compares 2048 samples with 2048 clips of the training set, 16 frames, 256x256. Draw as many first:
    latte-fast sample RUN --samples 2048 --out ucf-samples.

    The detector is a TorchScript file that you bring; none is downloaded. Published numbers use i3d_torchscript.pt
    (fvd), inception-2015-12-05.pt (fid) and c3d_ucf101.pt (is). docs/evaluation.md has the protocol.

    Example: latte-fast evaluate ucf-samples --real UCF-101 --kind ucf101 --detector i3d_torchscript.pt

    Args:
        samples: folder that `latte-fast sample` wrote (mp4, gif, npz), or any folder of films or picture folders.
        detector: TorchScript file of the network that looks at clips (fvd, is) or frames (fid).
        metric: fvd of clips, fid of single frames, or is (inception score) of clips, which needs no real set.
        real: folder of the real set; may be left out where the file of --real-stats exists.
        kind: layout of the real set's folder, as for `latte-fast encode`.
        clips: largest number of clips taken from each set.
        frames: number of frames in a clip.
        interval: distance between a clip's frames in a real video; of samples every frame is used.
        images: largest number of frames taken from each set, for fid.
        size: height and width in pixels to which both sets are scaled for the detector.
        seed: seed for the choice of videos, starts and frames.
        batch: number of clips or frames in a batch; another number may change the last digits of the result.
        device: device on which the detector runs.
        workers: number of processes that decode.
        real_stats: .safetensors file that keeps the real set's statistics for the next evaluation; an existing file is
            used if it was made with the same detector, set and settings.
        index: file that keeps the real videos' frame times for the next run.
        out: new .json file for the number and everything needed to repeat it.
    """
    # imported here because reading videos loads PyAV, which --help does not need
    from latte_fast.evaluation import Evaluation, write_result
    from latte_fast.evaluation import evaluate as measure
    from latte_fast.evaluation.result import check_out
    from latte_fast.locks import one_writer_of

    logging.basicConfig(format="%(message)s")
    device = pick_device(device, "evaluate")
    try:
        with ExitStack() as stack:
            out = check_out(out or samples / f"{metric}.json")
            for path in (out, real_stats) if real_stats is not None and not real_stats.exists() else (out,):
                stack.enter_context(one_writer_of(path, "evaluate"))
            config = Evaluation(
                samples, detector, metric, real or "", kind or "", clips, frames, interval, images, size, seed, batch,
                workers, device, real_stats or "", index,
            )  # fmt: skip
            result = measure(config)
            # printed first, so that a failure to write the file does not lose the number
            print("\n".join(result.lines()), flush=True)
            write_result(out, result)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "evaluate")) from error
    print(f"  {out}")
