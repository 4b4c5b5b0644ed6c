"""A fresh model's weights: what starts at zero, and how wide the rest is drawn."""

import pytest
import torch
from torch import nn

from latte_fast import Latte, LatteT2V
from latte_fast.models.latte_t2v.initialize import initialize, silence_time
from tests.helpers.pairs import SMALL
from tests.helpers.t2v import SMALL as SMALL_T2V

# tables of the modulation, drawn where they are made
TABLES = ("scale_shift_table",)


def kinds(model: nn.Module) -> dict[str, str]:
    """Each trained parameter's way of starting, as found in its values."""
    found = {}
    for name, p in model.named_parameters():
        if not p.requires_grad or name.endswith(TABLES):
            continue
        bound = (6 / sum(p.flatten(1).shape)) ** 0.5 if p.dim() > 1 else 0.0
        if not p.any():
            found[name] = "zero"
        elif 0.95 * bound < p.abs().max() <= bound and abs(p.std() / bound - 3**-0.5) < 0.05:
            found[name] = "xavier"
        elif abs(p.std() / 0.02 - 1) < 0.1 and p.abs().max() > 0.05:
            found[name] = "0.02"
        else:
            found[name] = f"{p.abs().max():.4f}, {p.std():.4f}, of {bound:.4f}"
    return found


@pytest.mark.parametrize("cell", [{"extras": 2}, {"extras": 78}, {"conditioning": "tokens", "variant": 3}], ids=str)
def test_latte_starts_as_dit(cell: dict) -> None:
    torch.manual_seed(0)
    for name, kind in kinds(Latte(**SMALL | {"num_classes": 40} | cell)).items():
        if ".norm" in name:
            continue  # of the plain blocks: torch's own
        silent = name.endswith("bias") or "adaLN" in name or name == "final_layer.linear.weight"
        drawn = name.startswith(("t_embedder", "y_embedder"))
        assert kind == ("zero" if silent else "0.02" if drawn else "xavier"), (name, kind)


def test_compression_frames_start_as_copies() -> None:
    model = Latte(**SMALL | {"num_frames": 4}, patch_frames=2)
    latent = torch.randn(1, model.out_channels, 2, 3, 3)
    assert torch.equal(model.upsample(latent), latent.repeat_interleave(2, dim=2))


def test_text_to_video_starts_as_pixart() -> None:
    torch.manual_seed(0)
    model = LatteT2V(**SMALL_T2V)
    initialize(model)
    for name, kind in kinds(model).items():
        text_out = name.startswith("transformer_blocks") and name.endswith("attn2.to_out.0.weight")
        silent = name.endswith("bias") or name == "proj_out.weight" or text_out
        drawn = name.startswith(("adaln_single", "caption_projection"))
        assert kind == ("zero" if silent else "0.02" if drawn else "xavier"), (name, kind)


def test_tables_of_the_modulation_are_drawn_as_diffusers_draws_them() -> None:
    torch.manual_seed(0)
    tables = [p.flatten() for name, p in LatteT2V(**SMALL_T2V).named_parameters() if name.endswith(TABLES)]
    assert len(tables) == 2 * SMALL_T2V["num_layers"] + 1
    assert float(torch.cat(tables).detach().std()) * 72**0.5 == pytest.approx(1, abs=0.05)


@torch.no_grad()
def test_silent_time_blocks_add_nothing() -> None:
    model = LatteT2V(**SMALL_T2V).eval()
    for p in model.parameters():
        p.normal_(std=0.05)
    x, t, text = torch.randn(1, 4, 3, 8, 8), torch.tensor([9]), torch.randn(1, 7, 40)
    without = model(x, t, text, enable_temporal_attentions=False).sample
    model.time_positions = lambda width, frames, x: torch.zeros(frames, 1, width)
    assert not torch.allclose(model(x, t, text).sample, without, atol=1e-5)
    silence_time(model)
    torch.testing.assert_close(model(x, t, text).sample, without)
