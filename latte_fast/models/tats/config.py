"""The configuration of a 3D-VQGAN: its constructor's keywords."""

from dataclasses import dataclass
from typing import ClassVar, Literal

GROUPS = 32
PADDINGS = ("replicate", "constant", "reflect", "circular")


@dataclass(frozen=True)
class VQGANConfig:
    """The 3D-VQGAN; the defaults are the authors' recipe, 23.7 million parameters.

    Args:
        n_hiddens: channels of the first convolution, doubled by each downsampling block.
        downsample: pixels a latent in time, height and width, powers of two.
        embedding_dim: width of a code.
        n_codes: number of codes.
        norm: batch norm, over all ranks in training; or group norm, of 32 groups in each clip.
        padding: what lies beyond a clip's edges for the encoder's strided convolutions; all others repeat the edge.
        channels: channels of a clip: 3, or 1 for pictures of sound.
    """

    family: ClassVar[str] = "vqgan"  # in the checkpoints of a run

    n_hiddens: int = 32
    downsample: tuple[int, int, int] = (4, 8, 8)
    embedding_dim: int = 256
    n_codes: int = 16384
    norm: Literal["batch", "group"] = "batch"
    padding: Literal["replicate", "constant", "reflect", "circular"] = "replicate"
    channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "downsample", tuple(self.downsample))
        for name in ("n_hiddens", "embedding_dim", "n_codes", "channels"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        factors = self.downsample
        powers = len(factors) == 3 and all(isinstance(d, int) and d >= 1 and d & (d - 1) == 0 for d in factors)
        _require(powers and max(factors) > 1, "downsample", "three powers of two, not all 1", factors)
        _require(self.norm in ("batch", "group"), "norm", "batch or group", self.norm)
        _require(self.padding in PADDINGS, "padding", f"one of {', '.join(PADDINGS)}", self.padding)
        divisible = self.norm == "batch" or 2 * self.n_hiddens % GROUPS == 0
        _require(divisible, "n_hiddens", f"a multiple of {GROUPS // 2} for group norm", self.n_hiddens)

    def strides(self) -> list[tuple[int, int, int]]:
        """Returns the stride of each encoder block: 2 on an axis until its factor is reached, then 1."""
        halvings = [d.bit_length() - 1 for d in self.downsample]
        return [tuple(2 if n > i else 1 for n in halvings) for i in range(max(halvings))]  # type: ignore[misc]


def _require(ok: bool, name: str, rule: str, value: object) -> None:
    if not ok:
        raise ValueError(f"VQGAN: {name} must be {rule}, got {value!r}")
