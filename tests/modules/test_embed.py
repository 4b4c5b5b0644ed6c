"""Position tables stretched to other clips, by what interpolation leaves as it is."""

import torch

from latte_fast import Latte
from latte_fast.modules.embed import stretch_space, stretch_time


def test_time_keeps_its_ends_and_straight_lines() -> None:
    table = torch.tensor([[0.0, 5.0], [3.0, 4.0], [6.0, 3.0]])[None]
    for frames in (2, 5, 7):
        at = torch.linspace(0, 2, frames)
        torch.testing.assert_close(stretch_time(table, frames), torch.stack([3 * at, 5 - at], dim=1)[None])
    assert stretch_time(table.bfloat16(), 4).dtype == torch.bfloat16


def test_space_keeps_planes_away_from_its_edges() -> None:
    """Pixels are squares: the centre of the i-th of n lies at (i + 1/2) / n of the side."""
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    table = torch.stack([row, column], dim=-1).view(1, 144, 2)
    got = stretch_space(table, 6, 4).view(6, 4, 2)[1:-1, 1:-1]
    rows, columns = torch.tensor([2.5, 4.5, 6.5, 8.5]), torch.tensor([4.0, 7.0])
    torch.testing.assert_close(got, torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1))
    assert stretch_space(table.bfloat16(), 3, 3).dtype == torch.bfloat16


def test_a_model_stretches_its_own_tables() -> None:
    extend = {"extend_time": "interpolate", "extend_space": "interpolate"}
    model = Latte(input_size=8, num_frames=3, depth=2, hidden_size=64, num_heads=2, **extend)
    with torch.no_grad():
        model.pos_embed.normal_()
        model.temp_embed.normal_()
    pos, rope = model.time_positions(5, torch.device("cpu"))
    assert pos is not None and rope is None
    assert torch.equal(pos[:, 0], stretch_time(model.temp_embed, 5)[0])
    assert torch.equal(model.space_positions(6, 3), stretch_space(model.pos_embed, 6, 3))
