"""The settings of a measurement, checked as they are made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from latte_fast.data.config import KINDS
from latte_fast.evaluation.inception_score import SPLITS

Metric = Literal["fvd", "fid", "is"]
METRICS: tuple[str, ...] = get_args(Metric)
# the settings of published numbers; a metric has no others
PROTOCOL = {
    "fvd": {"clips": 2048, "frames": 16, "interval": 3, "batch": 8},
    "fid": {"images": 50_000, "batch": 64},
    "is": {"clips": 2048, "frames": 16, "batch": 8},
}
REAL_KINDS = tuple(kind for kind in KINDS if kind not in ("latents", "tokens", "shapes"))
# least clips or frames: a covariance needs two, and so does each split of the inception score
LEAST = {"fvd": 2, "fid": 2, "is": 2 * SPLITS}


@dataclass(frozen=True)
class Evaluation:
    """A metric, the two sets it compares, and its settings; docs/evaluation.md has those of published numbers.

    Args:
        samples: folder that `latte-fast sample` wrote (mp4, gif or npz), or one of films or of picture folders.
        detector: TorchScript file of the network whose features are compared.
        metric: fvd, fid (of single frames), or is (inception score of clips, which has no real set).
        real: folder of the real set; may be left out where real_stats is there.
        kind: layout of the real set's folder, as in docs/data.md.
        clips: largest number of clips taken from each set, for fvd and is; None is 2048.
        frames: number of frames in a clip; None is 16.
        interval: distance between a clip's frames in a real video; None is 3. A sample gives its first frames.
        images: largest number of frames taken from each set, for fid; None is 50000.
        size: height and width in pixels at which both sets meet the detector.
        seed: seed of the choice of videos, starts and frames.
        batch: number of clips or frames in one call of the detector; None is 8 clips or 64 frames.
        workers: number of processes that decode.
        device: device that the detector runs on.
        real_stats: .safetensors file of the real set's moments, written if absent, else read and checked.
        index: file in which the frame times of the real videos are kept.
    """

    samples: str | Path
    detector: str | Path
    metric: Metric = "fvd"
    real: str | Path = ""
    kind: str = ""
    clips: int | None = None
    frames: int | None = None
    interval: int | None = None
    images: int | None = None
    size: int = 256
    seed: int = 0
    batch: int | None = None
    workers: int = 0
    device: str = "cpu"
    real_stats: str | Path = ""
    index: str | Path = ""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"evaluate: metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        for name in ("clips", "frames", "interval", "images"):
            if name not in PROTOCOL[self.metric] and getattr(self, name) is not None:
                self._refuse(name, f"be left out for {self.metric}")
        leasts = {"size": 1, "seed": 0, "workers": 0} | dict.fromkeys(PROTOCOL[self.metric], 1)
        leasts |= {name: LEAST[self.metric] for name in ("clips", "images") if name in leasts}
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                self._refuse(name, f"be at least {least}")
        self._check_real()

    def _check_real(self) -> None:
        if self.metric == "is":
            for name in ("real", "kind", "real_stats", "index"):
                if getattr(self, name):
                    self._refuse(name, "be left out for is, which has no real set")
            return
        if self.real and self.kind not in REAL_KINDS:
            self._refuse("kind", f"be one of {', '.join(REAL_KINDS)}, as real is laid out")
        if not self.real and not self.real_stats:
            self._refuse("real", "be the folder of the real set, or real_stats a file that an earlier run kept")
        if self.real_stats and Path(self.real_stats).suffix != ".safetensors":
            self._refuse("real_stats", "end in .safetensors")
        for name in ("kind", "index"):
            if getattr(self, name) and not self.real:
                self._refuse(name, "be left out without real")

    def _refuse(self, name: str, rule: str) -> None:
        value = getattr(self, name)
        raise ValueError(f"evaluate: {name} must {rule}, got {'none' if value == '' else value}")

    def setting(self, name: str) -> int:
        """Returns a setting of this metric: the given value, or the protocol's."""
        value = getattr(self, name)
        return PROTOCOL[self.metric][name] if value is None else value

    @property
    def unit(self) -> str:
        """What one row of features describes."""
        return "frame" if self.metric == "fid" else "clip"

    @property
    def count(self) -> int:
        """Number of rows of features to take from each set."""
        return self.setting("images" if self.metric == "fid" else "clips")
