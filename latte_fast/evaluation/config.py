"""What is to be measured: one frozen description, checked as it is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from latte_fast.data.config import KINDS
from latte_fast.evaluation.inception_score import SPLITS

Metric = Literal["fvd", "fid", "is"]
METRICS: tuple[str, ...] = get_args(Metric)
# what published numbers are made with; a metric has no setting that is not here
PROTOCOL = {
    "fvd": {"clips": 2048, "frames": 16, "interval": 3, "batch": 8},
    "fid": {"images": 50_000, "batch": 64},
    "is": {"clips": 2048, "frames": 16, "batch": 8},
}
REAL_KINDS = tuple(kind for kind in KINDS if kind not in ("latents", "shapes"))
# a covariance needs two, and so does each of the score's parts
LEAST = {"fvd": 2, "fid": 2, "is": 2 * SPLITS}


@dataclass(frozen=True)
class Evaluation:
    """A metric, the two sets it compares, and how; docs/evaluation.md says what published numbers are made with.

    Args:
        samples: folder of what `latte-fast sample` wrote (mp4, gif or npz), or of any films or folders of pictures.
        detector: TorchScript file of the network whose features are compared.
        metric: fvd, fid (of single frames), or is (inception score of clips, which has no real set).
        real: folder of the real set; may be left out where real_stats is there.
        kind: how that folder is laid out, as in docs/data.md.
        clips: taken of each set at most, for fvd and is; None is 2048.
        frames: of a clip; None is 16.
        interval: frames of a real video from one of the clip's to the next; None is 3. Samples are taken as they are.
        images: frames taken of each set at most, for fid; None is 50000.
        size: height and width in pixels at which both sets meet the detector.
        seed: of the choice of videos, starts and frames.
        batch: clips or frames that the detector takes at once; None is 8 clips or 64 frames.
        workers: processes that decode.
        device: on which the detector runs.
        real_stats: .safetensors file of the real set's moments, written when absent, else used where it fits.
        index: file that keeps the real videos' frame times.
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

    def of(self, name: str) -> int:
        """A setting of this metric: as asked for, or the protocol's."""
        value = getattr(self, name)
        return PROTOCOL[self.metric][name] if value is None else value

    @property
    def unit(self) -> str:
        """What one row of features is of."""
        return "frame" if self.metric == "fid" else "clip"

    @property
    def count(self) -> int:
        """Rows of features asked for of each set."""
        return self.of("images" if self.metric == "fid" else "clips")
