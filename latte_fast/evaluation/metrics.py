"""The metrics, a row each: what `latte-fast evaluate`, its documentation and its results know about them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from latte_fast.evaluation.coherence import class_coherence, label_divergence
from latte_fast.evaluation.frechet import frechet_distance, moments
from latte_fast.evaluation.inception_score import SPLITS, inception_score
from latte_fast.evaluation.kernel_distance import jedi_distance, kernel_distance
from latte_fast.evaluation.manifold import manifold_score
from latte_fast.evaluation.score import Score, mean_score, replicates, resampled

# settings of published numbers; a subset of 0 rows is 1000, or half of a smaller set
CLIPS = {"clips": 2048, "frames": 16, "interval": 3, "batch": 8}
IMAGES = {"images": 50_000, "batch": 64}
PAIRS = {"clips": 2048, "frames": 16}
SUBSETS = {"subsets": 100, "subset": 0}
Against = Literal["real", "pairs", "start", "nothing"]


@dataclass(frozen=True)
class Call:
    """How a metric calls its detector.

    Args:
        file: name of the file that published numbers are made with.
        network: network in that file.
        flags: names of keyword arguments, all of which are True.
        input: shape of the uint8 input.
        output: shape of the output, one row per clip or frame.
    """

    file: str
    network: str
    flags: tuple[str, ...]
    input: str
    output: str

    def __str__(self) -> str:
        flags = "".join(f", {name}=True" for name in self.flags)
        return f"detector(x{flags}) with x uint8 {self.input} -> {self.output}"

    @property
    def advice(self) -> str:
        return f"published numbers are made with {self.file} ({self.network}), called {self}"


I3D = Call(
    "i3d_torchscript.pt",
    "I3D of Kinetics-400",
    ("rescale", "resize", "return_features"),
    "(B, 3, F, H, W)",
    "(B, D)",
)
INCEPTION = Call("inception-2015-12-05.pt", "Inception-v3", ("return_features",), "(B, 3, H, W)", "(B, D)")
INCEPTION_CLASSES = Call(
    "inception-2015-12-05.pt", "Inception-v3", ("no_output_bias",), "(B, 3, H, W)", "(B, classes), probabilities"
)
C3D = Call("c3d_ucf101.pt", "C3D of UCF101", (), "(B, 3, F, H, W)", "(B, classes), probabilities")
JEPA = Call(
    "a V-JEPA", "ViT-H of SSv2", ("rescale", "resize", "return_features"), "(B, 3, F, H, W)", "(B, D)"
)  # fmt: skip
LPIPS = Call("an LPIPS", "AlexNet", (), "(F, 3, H, W) twice, float in [-1, 1]", "(F,) or (F, 1, 1, 1)")


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        title: its name beside a number of the published detector.
        form: what the number is called with any other network's features.
        about: what it measures, in a few words.
        score: function of the samples' rows, the real rows or None, and the settings.
        better: whether a good set has a lower or a higher value.
        unit: what one row describes.
        against: what the samples are compared with: a real set, films of the same names, each film's start, or nothing.
        call: how the detector is called; None where pixels are measured.
        least: smallest number of clips or frames.
        settings: the settings of published numbers; a metric has no others.
    """

    title: str
    form: str
    about: str
    score: Callable[[Tensor, Tensor | None, dict[str, int]], Score]
    better: Literal["lower", "higher"] = "lower"
    unit: Literal["clip", "frame"] = "clip"
    against: Against = "real"
    call: Call | None = I3D
    least: int = 2
    settings: dict[str, int] = field(default_factory=lambda: dict(CLIPS))

    @property
    def moments(self) -> bool:
        """Whether the mean and covariance of the rows are all that it takes."""
        return self.score is frechet_score

    @property
    def probabilities(self) -> bool:
        """Whether a row is the probabilities of classes."""
        return self.call is not None and self.call.output.endswith("probabilities")

    @property
    def size(self) -> int:
        """Height and width of what is measured unless another is asked for; 0 leaves films as they are."""
        return 0 if self.against == "pairs" or self.call is None else 256


def frechet_score(samples: Tensor, real: Tensor | None, settings: dict[str, int]) -> Score:
    """Returns the Frechet distance of two sets of rows."""
    assert real is not None
    value = frechet_distance(moments(real), moments(samples))
    again = replicates(
        settings, lambda draw: frechet_distance(moments(resampled(real, draw)), moments(resampled(samples, draw)))
    )
    return Score(value).bounded(again)


def class_score(samples: Tensor, real: Tensor | None, settings: dict[str, int]) -> Score:
    """Returns the inception score of rows of probabilities."""
    again = replicates(settings, lambda draw: inception_score(resampled(samples, draw))[0])
    return Score(*inception_score(samples)).bounded(again)


def _between(score: Callable[[Tensor, Tensor, dict[str, int]], Score]) -> Callable[..., Score]:
    def against(samples: Tensor, real: Tensor | None, settings: dict[str, int]) -> Score:
        assert real is not None
        return score(samples, real, settings)

    return against


def _alone(samples: Tensor, real: Tensor | None, settings: dict[str, int]) -> Score:
    return mean_score(samples, settings)


METRICS: dict[str, Metric] = {
    "fvd": Metric("FVD", "Frechet distance", "Frechet distance of clips", frechet_score),
    "fid": Metric(
        "FID", "Frechet distance", "Frechet distance of frames", frechet_score,
        unit="frame", call=INCEPTION, settings=IMAGES,
    ),
    "is": Metric(
        "inception score", "inception score", "how sure and how different a classifier's answers are", class_score,
        better="higher", against="nothing", call=C3D, least=2 * SPLITS,
        settings={"clips": 2048, "frames": 16, "batch": 8},
    ),
    "is_images": Metric(
        "inception score of frames", "inception score", "the same of single frames", class_score,
        better="higher", unit="frame", against="nothing", call=INCEPTION_CLASSES, least=2 * SPLITS, settings=IMAGES,
    ),
    "kvd": Metric(
        "KVD", "kernel distance", "unbiased MMD of clips under a cubic kernel", _between(kernel_distance),
        settings=CLIPS | SUBSETS,
    ),
    "kid": Metric(
        "KID", "kernel distance", "unbiased MMD of frames under a cubic kernel", _between(kernel_distance),
        unit="frame", call=INCEPTION, settings=IMAGES | SUBSETS,
    ),
    "jedi": Metric(
        "JEDi", "JEDi's distance", "100 times the MMD of clips under a quadratic kernel", _between(jedi_distance),
        call=JEPA,
    ),
    "prdc": Metric(
        "precision", "precision", "precision, recall, density and coverage of clips", _between(manifold_score),
        better="higher", settings=CLIPS | {"neighbours": 5},
    ),
    "ccs": Metric(
        "class coherence", "class coherence", "share of films whose class later is that of their start",
        class_coherence, better="higher", against="start", call=C3D, least=1,
        settings={"clips": 2048, "frames": 16, "batch": 8},
    ),
    "ics": Metric(
        "label divergence", "label divergence", "KL of a classifier's mean answer at the films' start and later",
        label_divergence, unit="frame", against="start", call=INCEPTION_CLASSES, least=1, settings=IMAGES,
    ),
    "psnr": Metric(
        "PSNR", "PSNR", "peak signal-to-noise ratio in dB of films of the same names", _alone,
        better="higher", against="pairs", call=None, least=1, settings=PAIRS,
    ),
    "ssim": Metric(
        "SSIM", "SSIM", "structural similarity of films of the same names", _alone,
        better="higher", against="pairs", call=None, least=1, settings=PAIRS,
    ),
    "lpips": Metric(
        "LPIPS", "LPIPS", "perceptual distance of films of the same names, by your network", _alone,
        against="pairs", call=LPIPS, least=1, settings=PAIRS,
    ),
    "flicker": Metric(
        "flicker", "flicker", "mean difference of neighbouring frames, of pixels in [0, 1]", _alone,
        against="nothing", call=None, least=1, settings=PAIRS,
    ),
}  # fmt: skip
# StyleGAN-V's names of protocols: metric and settings; its clips take every frame, Latte's every third
PRESETS: dict[str, tuple[str, dict[str, int]]] = {
    "fvd2048_16f": ("fvd", {"clips": 2048, "frames": 16, "interval": 1}),
    "fvd2048_128f": ("fvd", {"clips": 2048, "frames": 128, "interval": 1}),
    "fid50k": ("fid", {"images": 50_000}),
    "is50k": ("is_images", {"images": 50_000}),
}
