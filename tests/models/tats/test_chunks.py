"""Time: a still clip has one latent, tokens move with the film, and films go through in chunks exactly."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast import VQGAN
from latte_fast.models.tats import chunks
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.testing import assert_no_worse_than_torch, max_error, relative_error
from tests.helpers.tiny_vqgan import clip, pair

# the authors' strides, which decide how far a latent looks
LONG: dict[str, Any] = {"n_hiddens": 2, "downsample": (4, 8, 8), "embedding_dim": 4, "n_codes": 32}


def long(dtype: torch.dtype, frames: int = 256) -> tuple[VQGAN, Tensor]:
    torch.manual_seed(0)
    ours, _ = pair(dtype, **LONG)
    x = clip(1, frames, 8, width=16).to(dtype)
    with torch.no_grad():
        z = ours.latents(x).movedim(1, -1).flatten(0, -2)
    ours.codebook.embeddings.copy_(z[torch.randperm(len(z))[:32]])
    return ours, x


@pytest.mark.parametrize("padding", ["replicate", "constant"])
def test_a_still_clip_has_one_latent(padding: str) -> None:
    ours, _ = pair(downsample=(4, 4, 4), padding=padding)
    still = clip(1, 3, 16)[:, :, :1].expand(-1, -1, 16, -1, -1)
    with torch.no_grad():
        z = ours.latents(still)
    assert z.shape[2] == 4 and z.std() > 0.1
    difference = (z - z[:, :, :1]).abs().max().item()
    assert (difference == 0) == (padding == "replicate"), difference
    assert padding == "replicate" or difference > 0.05


def test_tokens_move_with_the_film() -> None:
    """By one latent frame, more than the encoder's reach from both ends; nearer they need not."""
    ours, x = long(torch.float64, 128)
    with torch.no_grad():
        first, second = ours.encode(x[:, :, :-4]), ours.encode(x[:, :, 4:])
    assert first.shape[1] == 31 and len(first.unique()) >= 16
    assert torch.equal(first[:, 1 + 8 : -8], second[:, 8 : -8 - 1])
    z = [ours.latents(part) for part in (x[:, :, :-4], x[:, :, 4:])]
    assert max_error(z[0][:, :, 1], z[1][:, :, 0]) > 1e-3


def test_reach() -> None:
    assert chunks.reach_of_encoder(VQGANConfig()) == 8
    assert chunks.reach_of_decoder(VQGANConfig()) == 6


@pytest.mark.parametrize("strides", [(4, 8, 8), (2, 4, 4), (1, 2, 2), (8, 4, 8)], ids=str)
def test_reach_is_what_outputs_depend_on(strides: tuple[int, int, int]) -> None:
    """By gradients: the outermost frame that an output depends on, on either side."""
    ours, _ = pair(torch.float64, **LONG | {"downsample": strides})
    factor, middle = strides[0], 24
    x = clip(1, 48 * factor, 8).double().requires_grad_()
    seen = torch.autograd.grad(ours.latents(x)[:, :, middle].abs().sum(), x)[0].abs().sum((0, 1, 3, 4))
    touched = seen.unflatten(0, (48, factor)).sum(1).nonzero()
    assert max(middle - touched.min(), touched.max() - middle) == chunks.reach_of_encoder(ours.config)
    z = torch.randn(1, 4, 48, 1, 1, dtype=torch.float64, requires_grad=True)
    frames = ours.from_latents(z)[:, :, middle * factor : (middle + 1) * factor]
    touched = torch.autograd.grad(frames.abs().sum(), z)[0].abs().sum((0, 1, 3, 4)).nonzero()
    assert max(middle - touched.min(), touched.max() - middle) == chunks.reach_of_decoder(ours.config)


def joined(parts: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(parts), 2)


def test_chunks_equal_the_whole_in_float64() -> None:
    ours, x = long(torch.float64)
    with torch.no_grad():
        z, codes = ours.latents(x), ours.codebook.look_up(ours.encode(x))
        made = ours.from_latents(codes)

    def frames(start: int, stop: int) -> Tensor:
        return x[:, :, start:stop]

    def latents(start: int, stop: int) -> Tensor:
        return codes[:, :, start:stop]

    assert relative_error(joined(chunks.latents_of(ours, frames, 64)), z) <= 1e-12
    assert relative_error(joined(chunks.latents_of(ours, frames, 64, reach=7)), z) > 1e-10
    assert relative_error(joined(chunks.pixels_of(ours, latents, 64)), made) <= 1e-12
    assert relative_error(joined(chunks.pixels_of(ours, latents, 64, reach=5)), made) > 1e-12


def test_what_is_asked_for_at_a_time_changes_no_bit() -> None:
    ours, x = long(torch.float32)
    wide, _ = long(torch.float64)
    with torch.no_grad():
        want = wide.latents(x.double())
        whole = wide.decode(wide.quantise(want))
        near = torch.cdist(want.movedim(1, -1).flatten(0, -2), wide.codebook.embeddings).topk(2, largest=False).values
    sure = (near[:, 1] - near[:, 0] > 1e-5).view(1, 64, 1, 2)
    results = []
    for chunk in (4, 7, 16, 64):
        pieces = list(chunks.encode_in_chunks(ours, lambda a, b: x[:, :, a:b], 64, chunk))
        assert [p.shape[1] for p in pieces[:-1]] == [chunk] * (len(pieces) - 1)
        tokens = torch.cat(pieces, 1)
        made = joined(chunks.decode_in_chunks(ours, wide.quantise(want), chunk))
        results.append((tokens, made))
    for tokens, made in results:
        assert torch.equal(tokens, results[0][0]) and torch.equal(made, results[0][1])
    assert torch.equal(results[0][0][sure], wide.quantise(want)[sure]) and sure.float().mean() > 0.95
    assert relative_error(results[0][1], whole) <= 3e-6


@torch.no_grad()
def test_chunks_in_bf16() -> None:
    """No further from the whole film in float64 than the authors' formula in bf16, and no bit from other chunks."""
    ours, oracle = pair(**LONG)
    for p in [*ours.parameters(), *ours.buffers()]:
        if p.is_floating_point():
            p.copy_(p.bfloat16())  # norms stay in fp32 here, and would be rounded there
    oracle.load_state_dict(ours.state_dict())
    half, rounded = ours.to(torch.bfloat16), copy.deepcopy(oracle).to(torch.bfloat16)
    x = clip(1, 160, 8, width=16).bfloat16()
    want = oracle.latents(0.5 * x.double())
    z = joined(chunks.latents_of(half, lambda a, b: x[:, :, a:b], 40))
    assert_no_worse_than_torch("latents", z, rounded.latents(0.5 * x), want)
    codes = want.bfloat16()
    made = [
        joined(chunks.in_pieces(chunks.pixels_of(half, lambda a, b: codes[:, :, a:b], 40), n)) for n in (16, 28, 160)
    ]
    same = 2 * rounded.decoder(rounded.post_vq_conv(codes))
    assert_no_worse_than_torch("pixels", made[0], same, 2 * oracle.decoder(oracle.post_vq_conv(codes.double())))
    assert all(torch.equal(made[0], other) for other in made[1:])


def test_memory_does_not_grow_with_the_film() -> None:
    ours, _ = long(torch.float32, 64)
    largest = []
    for length in (50, 120):
        sizes = [0]

        def seen(module: Any, args: Any, out: torch.Tensor, sizes: list[int] = sizes) -> None:
            sizes.append(out.numel())

        hooks = [
            m.register_forward_hook(seen) for m in ours.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))
        ]
        tokens = torch.zeros(1, length, 1, 2, dtype=torch.int64)
        assert sum(part.shape[2] for part in chunks.decode_in_chunks(ours, tokens, 3)) == 4 * length
        x = torch.zeros(1, 3, 1, 8, 16)
        read = partial(lambda x, a, b: x.expand(-1, -1, b - a, -1, -1), x)
        assert sum(part.shape[1] for part in chunks.encode_in_chunks(ours, read, length, 50)) == length
        largest.append(max(sizes))
        for hook in hooks:
            hook.remove()
    assert largest[0] == largest[1] > 0


def test_tiles_cover_a_film_once() -> None:
    for length in range(1, 80):
        covered, shapes = [], set()
        for tile in chunks.tiles(length, 6, 16):
            covered += range(tile.first, tile.last)
            shapes.add(tile.stop - tile.start)
            assert 0 <= tile.start <= tile.first < tile.last <= tile.stop <= length
            assert tile.start == 0 or tile.first - tile.start >= 6
            assert tile.stop == length or tile.stop - tile.last >= 6
        assert covered == list(range(length)) and len(shapes) == 1


def test_refused() -> None:
    group, _ = pair(n_hiddens=16, norm="group")
    ours, _ = pair()
    tokens = torch.zeros(1, 3, 2, 2, dtype=torch.int64)
    for model, message in (
        (group, "norm must be batch to go through a film in chunks, as group norm's statistics span all of it"),
        (pair(padding="circular")[0], "padding must not be circular in chunks"),
        (pair()[0].train(), "must be in eval mode in chunks"),
    ):
        with pytest.raises(ValueError, match=message):
            next(chunks.decode_in_chunks(model, tokens, 2))
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        next(chunks.decode_in_chunks(ours, tokens, 0))
