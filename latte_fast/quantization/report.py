"""What quantize did to each layer."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LayerReport:
    """One linear layer: its kind, and either the error of its 8-bit weight or the reason why it kept 16 bits."""

    kind: str  # qkv, proj, fc1 or fc2
    kept: str = ""
    error: float = 0.0  # of the weight: norm of the difference over the norm


@dataclass
class QuantizeReport:
    """Every linear layer that can have 8-bit weights, by name."""

    layers: dict[str, LayerReport] = field(default_factory=dict)

    @property
    def taken(self) -> list[str]:
        return [name for name, layer in self.layers.items() if not layer.kept]

    @property
    def kept(self) -> dict[str, str]:
        return {name: layer.kept for name, layer in self.layers.items() if layer.kept}

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} layers in 8 bits, {len(self.kept)} in 16"]
        for kind in dict.fromkeys(layer.kind for layer in self.layers.values()):
            errors = [layer.error for layer in self.layers.values() if layer.kind == kind and not layer.kept]
            if errors:
                lines.append(f"  {kind}: {len(errors)} layers, error of the weights {max(errors):.2%} at most")
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
