"""The VQGAN under torch.compile: one graph for the decoder and the encoder."""

import pytest
import torch

from latte_fast.testing import relative_error
from tests.helpers.tiny_vqgan import clip, pair


@pytest.mark.slow
def test_compiles_in_one_graph() -> None:
    ours, _ = pair()
    x = clip(frames=4)
    with torch.no_grad():
        z = ours.latents(x)
        encoder = torch.compile(ours.latents, fullgraph=True)
        decoder = torch.compile(ours.from_latents, fullgraph=True)
        assert relative_error(encoder(x), z) <= 3e-6
        assert relative_error(decoder(z), ours.from_latents(z)) <= 3e-6
