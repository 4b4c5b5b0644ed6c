"""Films of any length through a 3D-VQGAN in bounded memory, equal to the whole film at once.

With batch norm a latent depends on few frames around it, so a tile of the film that reaches that far beyond its core
gives the core exactly. All tiles have one shape, whatever a caller asks for at a time, because convolutions may round
by their shape.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latte_fast.models.tats.config import VQGANConfig
from latte_fast.models.tats.vqgan import VQGAN

# latent frames that a tile is kept of; with what it reaches beyond them 28 are decoded and 32 encoded at a time
CORE = 16


@dataclass(frozen=True)
class Tile:
    """Latent frames start .. stop that go through the network, and those of them that are kept, first .. last."""

    start: int
    stop: int
    first: int
    last: int


def reach_of_decoder(config: VQGANConfig) -> int:
    """Latent frames on each side that a latent frame's pixels depend on: 6 for the authors' strides."""
    factor = config.downsample[0]
    low, high = -1, factor  # of the frames 0 .. factor - 1 before the last convolution
    for stride, _, _ in reversed(config.strides()):
        low, high = low - 4, high + 4  # two residual blocks
        # o = stride * i - 1 + k with k in 0 .. 3
        low, high = -((2 - low) // stride), (high + 1) // stride
    return max(-low, high)


def reach_of_encoder(config: VQGANConfig) -> int:
    """Latent frames on each side whose pixels a latent depends on: 8 for the authors' strides."""
    factor = config.downsample[0]
    low, high = 0, 0
    for stride, _, _ in reversed(config.strides()):
        low, high = low - 2, high + 2
        front = 1 if stride == 2 else 2
        low, high = low * stride - front, high * stride - front + 3
    low, high = low - 1, high + 1
    return max(-(low // factor), high // factor)


def tiles(length: int, reach: int, core: int = CORE) -> Iterator[Tile]:
    """Yields tiles of one shape that cover `length` latent frames; a shorter film is one tile of its own length."""
    size = core + 2 * reach
    if length <= size:
        yield Tile(0, length, 0, length)
        return
    for first in range(0, length, core):
        start = min(max(first - reach, 0), length - size)
        yield Tile(start, start + size, first, min(first + core, length))


def check_chunks(model: VQGAN) -> None:
    """Raises ValueError for a model that is not exact in chunks."""
    config = model.config
    if config.norm != "batch":
        raise ValueError(
            "VQGAN: norm must be batch to go through a film in chunks, as group norm's statistics span all of it, "
            f"got {config.norm}"
        )
    if config.padding == "circular":
        raise ValueError("VQGAN: padding must not be circular in chunks, as it joins a film's ends, got 'circular'")
    if model.training:
        raise ValueError("VQGAN: the model must be in eval mode in chunks, as batch statistics span them, got training")


@torch.no_grad()
def latents_of(
    model: VQGAN, read: Callable[[int, int], Tensor], length: int, core: int = CORE, reach: int | None = None
) -> Iterator[Tensor]:
    """Yields a film's latents before quantisation, (B, D, n, h, w), a tile's core at a time.

    Args:
        model: 3D-VQGAN with batch norm, in eval mode.
        read: function that returns frames `start` to `stop` in [-1, 1], (B, 3, stop - start, H, W).
        length: number of latent frames.
        core: latent frames of a tile that are kept.
        reach: latent frames around them; by default as far as the encoder looks.
    """
    check_chunks(model)
    factor = model.config.downsample[0]
    for tile in tiles(length, reach_of_encoder(model.config) if reach is None else reach, core):
        z = model.latents(read(tile.start * factor, tile.stop * factor))
        yield z[:, :, tile.first - tile.start : tile.last - tile.start]


@torch.no_grad()
def pixels_of(
    model: VQGAN, read: Callable[[int, int], Tensor], length: int, core: int = CORE, reach: int | None = None
) -> Iterator[Tensor]:
    """Yields a film's pixels, (B, 3, n, H, W), a tile's core at a time; `read` returns codes (B, D, n, h, w)."""
    check_chunks(model)
    factor = model.config.downsample[0]
    for tile in tiles(length, reach_of_decoder(model.config) if reach is None else reach, core):
        x = model.from_latents(read(tile.start, tile.stop))
        yield x[:, :, (tile.first - tile.start) * factor : (tile.last - tile.start) * factor]


def in_pieces(parts: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Cuts a stream along time into pieces of `size`, the last one shorter."""
    if size < 1:
        raise ValueError(f"VQGAN: chunk must be at least 1, got {size}")
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += part.shape[2]
        while count >= size:
            joined = torch.cat(held, 2)
            yield joined[:, :, :size]
            held, count = [joined[:, :, size:]], count - size
    if count:
        yield torch.cat(held, 2)


def encode_in_chunks(model: VQGAN, read: Callable[[int, int], Tensor], length: int, chunk: int) -> Iterator[Tensor]:
    """Yields a film's tokens, (B, chunk, h, w), the last piece shorter; `read` and `length` as for `latents_of`."""
    tokens = (model.quantise(z)[:, None] for z in latents_of(model, read, length))
    return (piece[:, 0] for piece in in_pieces(tokens, chunk))


def decode_in_chunks(model: VQGAN, tokens: Tensor, chunk: int) -> Iterator[Tensor]:
    """Yields the pixels of tokens (B, t, h, w), of `chunk` latent frames at a time, the last piece of fewer."""

    def read(start: int, stop: int) -> Tensor:
        return model.codebook.look_up(tokens[:, start:stop].to(model.device))

    return in_pieces(pixels_of(model, read, tokens.shape[1]), chunk * model.config.downsample[0])
