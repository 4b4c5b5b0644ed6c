"""Networks that turn clips or frames into features, called and checked as a metric requires."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.evaluation.inception_score import check_probabilities
from latte_fast.evaluation.metrics import METRICS, Call
from latte_fast.evaluation.networks import SHIPPED, open_network, path_of


def call_of(metric: str) -> Call:
    """Returns how a metric calls its detector."""
    call = METRICS[metric].call
    assert call is not None
    return call


class Detector:
    """A detector's file opened for one metric; `sha256` is the digest of the file, `name` that of a known network."""

    def __init__(self, metric: str, path: str | Path, device: str = "cpu") -> None:
        self.metric, self.device, self.call = metric, check_device(device), call_of(metric)
        self.path = check_detector(metric, path)
        self.sha256 = digest_of(self.path)
        self.name, self.network, self.published = open_network(self.path, self.call, self.device)
        self.width: int | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor, names: Sequence[str] = ()) -> Tensor:
        """Computes checked features (B, D), on the CPU, of uint8 x (B, [F,] 3, H, W); `names` are of its items."""
        x = x.to(self.device, non_blocking=True)
        x = x.movedim(1, 2).contiguous() if x.ndim == 5 else x
        flags: dict[str, Any] = {} if self.name else dict.fromkeys(self.call.flags, True)
        try:
            with exact_convolutions():
                rows = self.network(x, **flags)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"evaluate: detector must take uint8 {tuple(x.shape)}, got from it: {reason}") from error
        # a copy: the rows may lie in a buffer that the next call overwrites, or in a much larger storage
        return self._checked(rows, len(x), names).to("cpu", copy=True)

    def _checked(self, rows: object, count: int, names: Sequence[str]) -> Tensor:
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != count or not rows.shape[1]:
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"evaluate: detector must give {self.call.output} for {count} inputs, got {got}")
        finite = rows.isfinite().all(1)
        if not finite.all():
            at = int((~finite).nonzero()[0])
            where = f" for {names[at]}" if names else ""
            raise ValueError(f"evaluate: detector must give finite numbers, got others{where}")
        self.width = self.width or rows.shape[1]
        if rows.shape[1] != self.width:
            raise ValueError(f"evaluate: detector must give one width, got {self.width} and {rows.shape[1]}")
        if METRICS[self.metric].probabilities:
            check_probabilities("evaluate: detector's", rows)
        return rows


def check_detector(metric: str, detector: str | Path) -> Path:
    """Returns the path of a detector's file, or raises ValueError if there is none."""
    path = path_of(detector)
    if not path.is_file():
        got = f"{path}, no file" if str(detector) else "none"
        raise ValueError(
            f"evaluate: detector must be a TorchScript file, got {got}; {call_of(metric).advice}; "
            f"{SHIPPED!r} is a network that a wheel ships, for numbers of your own"
        )
    return path


def check_device(name: str) -> torch.device:
    """Returns the device of this name, or raises ValueError if torch cannot compute on it."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"evaluate: device must be one that torch can use here, got {name} ({reason})") from error
    return torch.device(name)


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Makes cuDNN compute fp32 convolutions in full precision, where its default is TF32."""
    # torch 2.9 has a switch for convolutions alone; reading the old switch raises once the new one was set
    apart = getattr(torch.backends.cudnn, "conv", None)
    switch, name, exact = (
        (torch.backends.cudnn, "allow_tf32", False) if apart is None else (apart, "fp32_precision", "ieee")
    )
    before = getattr(switch, name)
    setattr(switch, name, exact)
    try:
        yield
    finally:
        setattr(switch, name, before)


def compare_detectors(first: str | Path, second: str | Path, device: str = "cpu") -> tuple[float, float]:
    """Returns the largest difference of two files' features of the same random clips, and the largest feature."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 16, 3, 224, 224), dtype=torch.uint8, generator=draw)
    a, b = (Detector("fvd", path, device)(x).double() for path in (first, second))
    if a.shape != b.shape:
        raise ValueError(f"evaluate: detectors must give one width, got {a.shape[1]} and {b.shape[1]}")
    return float((a - b).abs().max()), float(a.abs().max())
