"""FlexLatteConfig, the block layouts of FlexDiT and its density over time: plain numbers, importable anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from latte_fast.config import LatteConfig, LatteT2VConfig

SIDES = (4, 5, 6, 7, 8)
KINDS = {
    "P": "pooling attention over all tokens",
    "G": "generates the module's sparse tokens from its dense input",
    "S": "sparse",
    "R": "recovers all tokens",
    "D": "dense",
}
AUTO = "auto"
# depth: layouts by name, the first of them the default; spaces are for people
LAYOUTS: dict[int, dict[str, str]] = {
    28: {
        "B": "PP GSSSSSRD GSSSSSRD GSSSSSRD DD",
        "A": "PP GSSSRD GSSSRD GSSSRD GSSSRD DD",
        "C": "PP GSSSSSSSSSRD GSSSSSSSSSRD DD",
        "E": "PPPP GSSSSSRD GSSSSSRD GSSSSSRD",
    },
    24: {"B": "PP GSSSSSRD GSSSRD GSSSRD DD"},
    16: {"B": "PP GSSSRD GSSSRD DD"},
    12: {"B": "PP GSSSRD GSRD", "A": "PP GSRD GSRD DD"},
}


def known_layout(layout: str, depth: int) -> str:
    """Returns the layout that a name stands for at this depth; "auto" is the depth's default, other text is kept."""
    named = LAYOUTS.get(depth, {})
    if layout == AUTO:
        if not named:
            known = ", ".join(map(str, LAYOUTS))
            raise ValueError(f"FlexLatte: layout must be given for depths other than {known}, got depth {depth}")
        return next(iter(named.values()))
    return named.get(layout, layout)


class Blocks(Protocol):
    """Blocks in the order of their call, and what each attends over."""

    @property
    def depth(self) -> int: ...

    def axis(self, block: int) -> str: ...


def check_layout(layout: str, config: Blocks) -> str:
    """Returns a layout's letters without spaces, or raises ValueError naming the rule that it breaks."""

    def require(ok: bool, rule: str, found: str = "") -> None:
        if not ok:
            raise ValueError(f"FlexLatte: layout must {rule}, got {found}{layout!r}")

    letters = "".join(layout.split())
    odd = sorted(set(letters) - set(KINDS))
    require(not odd, f"be made of the letters {', '.join(KINDS)}", f"{''.join(odd)} in ")
    require(len(letters) == config.depth, f"name {config.depth} blocks, the depth", f"{len(letters)} in ")
    require(letters[0] in "PD", "start with dense blocks, P or D")
    inside = False
    for i, kind in enumerate(letters):
        at = f"{kind} at block {i} of "
        if kind in "GR":
            require(config.axis(i) == "space", "have G and R on blocks over space alone", at)
        if kind == "R":
            require(inside, "generate sparse tokens (G) before it recovers all (R)", at)
        if kind == "S":
            require(inside, "generate sparse tokens (G) before a sparse block (S)", at)
        if kind in "PD":
            require(not inside, "recover all tokens (R) before a block P or D", at)
        inside = kind in "GS"
    require(not inside, "recover all tokens (R) at its end")
    return letters


def check_sides(sides: Sequence[int], grid: int) -> tuple[int, ...]:
    """Returns the sides of the sparse grid, which grow from noise to sample, or raises ValueError."""
    sides = tuple(sides)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if not sides or not whole:
        raise ValueError(f"FlexLatte: sides must be positive integers, got {sides}")
    if list(sides) != sorted(set(sides)):
        raise ValueError(f"FlexLatte: sides must grow from noise to sample, got {sides}")
    if sides[-1] > grid:
        raise ValueError(f"FlexLatte: sides must be at most the {grid} tokens along an edge, got {sides[-1]}")
    return sides


@dataclass(frozen=True)
class FlexLatteConfig(LatteConfig):
    """LatteConfig, then the layout and the densities.

    Args:
        layout: a letter a block: P, pooling attention; G, generates sparse tokens; S, sparse; R, recovers all tokens;
            D, dense. Or the name of one of LAYOUTS; "auto" is the default of the depth. Spaces are for people.
        sides: sides of the sparse grid on a square grid, from noise to sample.
    """

    layout: str = AUTO
    sides: tuple[int, ...] = SIDES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant > 2:
            raise ValueError(f"FlexLatte: variant must be 0, 1 or 2, got {self.variant}")
        if self.conditioning != "adaln":
            raise ValueError(f"FlexLatte: conditioning must be 'adaln', got {self.conditioning!r}")
        layout = known_layout(self.layout, self.depth)
        check_layout(layout, self)
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "sides", check_sides(self.sides, self.grid))

    @property
    def kinds(self) -> str:
        """The layout's letters, one a block."""
        return "".join(self.layout.split())


@dataclass(frozen=True)
class FlexT2VConfig(LatteT2VConfig):
    """LatteT2VConfig, then the layout of its space blocks and the densities, as in FlexLatteConfig."""

    layout: str = AUTO
    sides: tuple[int, ...] = SIDES

    def __post_init__(self) -> None:
        super().__post_init__()
        layout = known_layout(self.layout, self.depth)
        check_layout(layout, self)
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "sides", check_sides(self.sides, self.grid))

    @property
    def depth(self) -> int:
        return self.num_layers

    def axis(self, block: int) -> str:
        return "space"

    @property
    def kinds(self) -> str:
        """The layout's letters, one a space block."""
        return "".join(self.layout.split())


def sparse_grid(rows: int, columns: int, side: int) -> tuple[int, int]:
    """Returns the sparse grid of a grid of tokens: its shorter edge gets `side`, the longer one its share of it."""
    if not 1 <= side <= min(rows, columns):
        raise ValueError(f"FlexLatte: side must be in [1, {min(rows, columns)}], the shorter edge, got {side}")
    if rows == columns:  # without a division, which torch.compile does not trace where the side is a symbol
        return side, side
    longer = round(side * max(rows, columns) / min(rows, columns))
    return (side, longer) if rows <= columns else (longer, side)


def density_schedule(steps: int, sides: Sequence[int]) -> tuple[int, ...]:
    """Returns the side of the sparse grid at each sampling step, from noise to sample.

    The number of sparse tokens is the smallest for the first quarter of the steps, then grows linearly to the largest;
    each step takes the side whose square is nearest. A step's side depends on its share of the steps alone, so that a
    process respaced to fewer steps takes the sides that the model was trained with.
    """
    if steps < 1:
        raise ValueError(f"density_schedule: steps must be at least 1, got {steps}")
    sides = check_sides(sides, max(sides, default=1))
    if steps == 1:
        return (sides[-1],)
    least, growth, span = sides[0] ** 2, sides[-1] ** 2 - sides[0] ** 2, 3 * (steps - 1)
    # tokens times span, in integers, so that every machine takes the same side
    wanted = [least * span + growth * max(0, 4 * k - (steps - 1)) for k in range(steps)]
    return tuple(min(sides, key=lambda side: abs(side * side * span - tokens)) for tokens in wanted)
