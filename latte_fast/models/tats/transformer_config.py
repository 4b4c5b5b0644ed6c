"""The configuration of a token transformer: its constructor's keywords, and the sets of rows that its mask makes."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class TransformerConfig:
    """The transformer of TATS; see `TokenTransformer`, whose keywords these are."""

    family: ClassVar[str] = "tokens"  # in the checkpoints of a run

    vocab_size: int
    block_size: int
    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 1024
    n_unmasked: int = 0
    vtokens_pos: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.vtokens_pos is not None:
            object.__setattr__(self, "vtokens_pos", tuple(self.vtokens_pos))
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            _require(_is_count(getattr(self, name), 1), name, "at least 1", getattr(self, name))
        _require(self.n_embd % self.n_head == 0, "n_embd", f"a multiple of n_head = {self.n_head}", self.n_embd)
        rule = f"0, or so that both ends fit into block_size = {self.block_size}"
        _require(_is_count(self.n_unmasked, 0) and 2 * self.n_unmasked <= self.block_size, "n_unmasked", rule,
                 self.n_unmasked)  # fmt: skip
        table = self.vtokens_pos
        right = table is None or (len(table) == 3 and all(_is_count(n, 1) for n in table))
        _require(right, "vtokens_pos", "None or the (T, H, W) of a table", table)

    def ends(self, length: int) -> tuple[int, int]:
        """Returns how many of the first and of the last tokens of an input all rows see; the rest is causal.

        The mask is that of a whole block, of which a shorter input takes the top left: it has no last tokens, or fewer.
        """
        u = self.n_unmasked
        if not u:
            return 0, 0
        return min(u + 1, length), max(0, length - (self.block_size - (u - 1)))


def _is_count(x: object, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def _require(ok: bool, name: str, rule: str, value: object) -> None:
    if not ok:
        raise ValueError(f"TokenTransformer: {name} must be {rule}, got {value!r}")
