"""A 3D-VQGAN as a codec: its latents before quantisation, scaled to about unit variance, and back through its codes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class VQGANCodec:
    """Encodes clips to a 3D-VQGAN's latents before quantisation; decoding takes the nearest codes first.

    A latent is `frame_factor` frames by `factor` x `factor` pixels. With batch norm, long clips go through in tiles of
    one shape, in bounded memory.

    Args:
        network: 3D-VQGAN; see models.tats.
        tiles: functions of models.tats.chunks that go through a film, latents_of and pixels_of; None for a network that
            takes clips whole.
        name: name of the codec.
        fingerprint: digits that tell this network from others.
    """

    random = False

    def __init__(self, network: Any, tiles: tuple[Any, Any] | None, name: str, fingerprint: str) -> None:
        config = network.config
        self.frame_factor, height, width = config.downsample
        if height != width:
            raise ValueError(f"open_codec: the VQGAN must scale height and width alike, got {config.downsample}")
        self.network, self.tiles = network.eval().requires_grad_(False), tiles
        self.name, self.fingerprint = name, fingerprint
        self.factor, self.channels, self.n_codes = height, config.embedding_dim, config.n_codes
        # the spread of the codes in use, or of all where none has been counted
        book = network.codebook
        weights = book.N if bool(book.N.any()) else torch.ones_like(book.N)
        share = (weights / weights.sum())[:, None]
        mean = (share * book.embeddings).sum(0)
        self.scaling = float((share * (book.embeddings - mean).square()).sum(0).mean().rsqrt())

    @property
    def device(self) -> torch.device:
        return self.network.device

    @torch.no_grad()
    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes (B, F, 3, H, W) in [-1, 1] -> scaled latents (B, F / frame_factor, C, h, w) float32, and zeros."""
        mean = torch.cat([z.float() for z in self._latents(video)], 2).mul_(self.scaling).movedim(2, 1).contiguous()
        return mean, torch.zeros_like(mean)

    @torch.no_grad()
    def tokens(self, video: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Returns the tokens of (B, F, C, H, W) in [-1, 1] on a device: (B, F / frame_factor, h, w) int64."""
        return torch.cat([self.network.quantise(z).to(device) for z in self._latents(video)], 1)

    def _latents(self, video: Tensor) -> Iterator[Tensor]:
        channels = self.network.config.channels
        wrong = video.ndim != 5 or video.shape[2] != channels or not video.numel()
        if wrong or video.shape[1] % self.frame_factor or video.shape[3] % self.factor or video.shape[4] % self.factor:
            rule = f"F a multiple of {self.frame_factor}, H and W of {self.factor}"
            raise ValueError(f"encode: video must be (B, F, {channels}, H, W) with {rule}, got {tuple(video.shape)}")
        x = video.movedim(1, 2)
        if self.tiles is None:
            yield self.network.latents(x.to(self.device))
        else:

            def read(start: int, stop: int) -> Tensor:
                return x[:, :, start:stop].to(self.device)

            yield from self.tiles[0](self.network, read, x.shape[2] // self.frame_factor)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decodes scaled latents (B, F, C, h, w) -> (B, F * frame_factor, 3, H, W) float32, about [-1, 1]."""
        if latent.ndim != 5 or latent.shape[2] != self.channels or not latent.numel():
            raise ValueError(f"decode: latent must be (B, F, {self.channels}, h, w), got {tuple(latent.shape)}")
        z = latent.to(self.device, torch.float32).movedim(2, 1) / self.scaling
        codes = self.network.codebook.look_up(self.network.quantise(z))
        if self.tiles is None:
            x = self.network.from_latents(codes)
        else:

            def read(start: int, stop: int) -> Tensor:
                return codes[:, :, start:stop]

            x = torch.cat(list(self.tiles[1](self.network, read, codes.shape[2])), 2)
        return x.float().movedim(2, 1).contiguous()
