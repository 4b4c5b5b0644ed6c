"""TorchScript networks that turn clips or frames into features, opened, called and checked as a metric requires."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.evaluation.inception_score import check_probabilities


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


CALLS = {
    "fvd": Call(
        "i3d_torchscript.pt",
        "I3D of Kinetics-400",
        ("rescale", "resize", "return_features"),
        "(B, 3, F, H, W)",
        "(B, D)",
    ),
    "fid": Call("inception-2015-12-05.pt", "Inception-v3", ("return_features",), "(B, 3, H, W)", "(B, D)"),
    "is": Call("c3d_ucf101.pt", "C3D of UCF101", (), "(B, 3, F, H, W)", "(B, classes), probabilities"),
}


class Detector:
    """A detector's file opened for one metric; `sha256` is the digest of the file."""

    def __init__(self, metric: str, path: Path, device: str = "cpu") -> None:
        self.metric, self.path, self.device, self.call = metric, path, check_device(device), CALLS[metric]
        self.sha256 = digest_of(check_detector(metric, path))
        try:
            self.network = torch.jit.load(str(path), map_location=self.device).eval()
        except (RuntimeError, ValueError) as error:
            got = f"{path} ({str(error).strip().splitlines()[0]})"
            raise ValueError(f"evaluate: detector must be a TorchScript file, got {got}; {self.call.advice}") from error
        self._check_flags()
        self.width: int | None = None

    def _check_flags(self) -> None:
        forward = getattr(self.network, "forward", None)
        known = [argument.name for argument in forward.schema.arguments[1:]] if forward else []
        missing = [flag for flag in self.call.flags if flag not in known]
        if missing or not known:
            lacks = f"takes {', '.join(known) or 'nothing'}"
            raise ValueError(f"evaluate: detector must be called {self.call}, got {self.path}, which {lacks}")

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Computes checked features (B, D), on the CPU, of uint8 x (B, [F,] 3, H, W)."""
        x = x.to(self.device, non_blocking=True)
        x = x.movedim(1, 2).contiguous() if x.ndim == 5 else x
        flags: dict[str, Any] = dict.fromkeys(self.call.flags, True)
        try:
            with exact_convolutions():
                rows = self.network(x, **flags)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"evaluate: detector must take uint8 {tuple(x.shape)}, got from it: {reason}") from error
        # a copy: the rows may lie in a buffer that the next call overwrites, or in a much larger storage
        return self._checked(rows, len(x)).to("cpu", copy=True)

    def _checked(self, rows: object, count: int) -> Tensor:
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != count or not rows.shape[1]:
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"evaluate: detector must give {self.call.output} for {count} inputs, got {got}")
        if not rows.isfinite().all():
            raise ValueError("evaluate: detector must give finite numbers, got others")
        self.width = self.width or rows.shape[1]
        if rows.shape[1] != self.width:
            raise ValueError(f"evaluate: detector must give one width, got {self.width} and {rows.shape[1]}")
        if self.metric == "is":
            check_probabilities("evaluate: detector's", rows)
        return rows


def check_detector(metric: str, path: Path) -> Path:
    """Returns the path of a detector's file, or raises ValueError if there is none."""
    if not path.is_file():
        raise ValueError(f"evaluate: detector must be a TorchScript file, got {path}, no file; {CALLS[metric].advice}")
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
