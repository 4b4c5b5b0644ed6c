"""What quantize did to each layer."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_fast.modules.linear8 import Linear8, Stored8


@dataclass(frozen=True)
class LayerReport:
    """One linear layer: its kind, and either the error of its 8-bit weight or the reason why it kept 16 bits."""

    kind: str  # qkv, proj, fc1, fc2 or head
    kept: str = ""
    error: float = 0.0  # of the weight: norm of the difference over the norm
    snr: float | None = None  # signal-to-noise ratio of the layer's result in dB, where it was calibrated
    gain: float = 0.0  # what smoothing gave of it in dB, of weights rounded to nearest


@dataclass
class QuantizeReport:
    """Every linear layer that can have 8-bit weights, by name."""

    layers: dict[str, LayerReport] = field(default_factory=dict)
    before: int = 0  # bytes of the weights that have become 8-bit
    after: int = 0  # bytes of their 8-bit values and scales
    beside: int = 0  # bytes of what is kept of the former

    def count(self, weight: Tensor, eight: Stored8, keep: bool) -> None:
        self.before += weight.nbytes
        self.after += eight.weight.nbytes + eight.weight_scale.nbytes
        self.beside += weight.nbytes if keep else 0

    @property
    def memory(self) -> str:
        """What the weights of the 8-bit layers take, in words."""
        said = f"their weights take {self.after / 1e6:.1f} MB"
        if self.beside:
            return f"{said} beside the {self.beside / 1e6:.1f} MB of before, which are kept"
        return f"{said} instead of {self.before / 1e6:.1f}"

    @property
    def taken(self) -> list[str]:
        return [name for name, layer in self.layers.items() if not layer.kept]

    @property
    def kept(self) -> dict[str, str]:
        return {name: layer.kept for name, layer in self.layers.items() if layer.kept}

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} layers in 8 bits, {len(self.kept)} in 16"]
        if self.taken:
            lines.append(f"  {self.memory}")
        for kind in dict.fromkeys(layer.kind for layer in self.layers.values()):
            errors = [layer.error for layer in self.layers.values() if layer.kind == kind and not layer.kept]
            if errors:
                ratios = [layer.snr for layer in self.layers.values() if layer.kind == kind and layer.snr is not None]
                mean = f", signal-to-noise ratio {sum(ratios) / len(ratios):.1f} dB" if ratios else ""
                gains = [layer.gain for layer in self.layers.values() if layer.kind == kind and layer.gain]
                mean += f", {sum(gains) / len(ratios):.1f} dB by smoothing" if gains else ""
                lines.append(f"  {kind}: {len(errors)} layers, error of the weights {max(errors):.2%} at most{mean}")
        reasons: dict[str, list[str]] = {}
        for name, why in self.kept.items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  {names[0]}{more} kept: {why}")
        return "\n".join(lines)


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Returns the norm of the difference over the norm of what is exact; 0 where both are zero."""
    exact = exact.detach().float()
    return float((got.float() - exact).norm() / exact.norm().clamp_min(1e-30))


@torch.no_grad()
def signal_to_noise(eight: Linear8, layer: nn.Linear, rows: list[Tensor]) -> float:
    """Returns the ratio in dB of a layer's result, without its bias, to what 8 bits change in it."""
    x = torch.cat(rows)
    want = F.linear(x, layer.weight).float()
    noise = (eight.product(x).float() - want).square().sum()
    return float(10 * torch.log10(want.square().sum().clamp_min(1e-30) / noise.clamp_min(1e-30)))
