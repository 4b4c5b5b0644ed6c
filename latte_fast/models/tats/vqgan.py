"""The time-agnostic 3D-VQGAN of TATS: clips to tokens and back."""

from typing import Literal

import torch
from torch import Tensor, nn

from latte_fast.models.tats.checks import check_clip, check_indices, check_range
from latte_fast.models.tats.codebook import Codebook, Quantised
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.models.tats.layers import Conv, Final, ResBlock, Stride, Up
from latte_fast.models.tats.parts import VQGAN_PARTS
from latte_fast.modules.linear import weight_of
from latte_fast.modules.parts import Fused


class DownBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: Stride, config: VQGANConfig):
        super().__init__()
        self.down = Conv(c_in, c_out, 4, stride, config.padding)
        self.res = ResBlock(c_out, config.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.res(self.down.padded(x))


class UpBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: Stride, config: VQGANConfig):
        super().__init__()
        self.up = Up(c_in, c_out, stride)
        self.res1, self.res2 = ResBlock(c_out, config.norm), ResBlock(c_out, config.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.res2(self.res1(self.up(x)))


class Encoder(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        width, strides = config.n_hiddens, config.strides()
        self.out_channels = width << len(strides)
        self.conv_first = Conv(config.channels, width, 3, padding=config.padding)
        blocks = [DownBlock(width << i, width << i + 1, stride, config) for i, stride in enumerate(strides)]
        self.conv_blocks = nn.ModuleList(blocks)
        self.final_block = Final(self.out_channels, config.norm)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_first.padded(x)
        for block in self.conv_blocks:
            h = block(h)
        return self.final_block(h)


class Decoder(nn.Module):
    def __init__(self, config: VQGANConfig):
        super().__init__()
        width, strides = config.n_hiddens, config.strides()
        top = width << len(strides)
        self.final_block = Final(top, config.norm)  # the authors' name; it comes first
        outs = [width << len(strides) - i for i in range(len(strides))]
        pairs = zip([top, *outs], outs, strides, strict=False)
        self.conv_blocks = nn.ModuleList([UpBlock(c_in, c_out, stride, config) for c_in, c_out, stride in pairs])
        self.conv_last = Conv(outs[-1], config.channels, 3)

    def forward(self, h: Tensor) -> Tensor:
        h = self.final_block(h)
        for block in self.conv_blocks:
            h = block(h)
        return self.conv_last.padded(h)


class VQGAN(Fused, nn.Module):
    """A 3D-VQGAN under the authors' keys, on clips (B, 3, T, H, W) in [-1, 1]; the network sees half of the values.

    Args:
        n_hiddens: channels of the first convolution, doubled by each downsampling block.
        downsample: pixels a latent in time, height and width, powers of two.
        embedding_dim: width of a code.
        n_codes: number of codes.
        norm: "batch", exact in chunks; or "group", whose statistics span a clip.
        padding: what lies beyond a clip's edges for the encoder's strided convolutions; all others repeat the edge.
        restart: a code whose average count falls below this starts again from a latent of the batch; 0 never does.
        channels: channels of a clip: 3, or 1 for pictures of sound.
    """

    parts = VQGAN_PARTS

    def __init__(
        self,
        n_hiddens: int = 32,
        downsample: tuple[int, int, int] = (4, 8, 8),
        embedding_dim: int = 256,
        n_codes: int = 16384,
        norm: Literal["batch", "group"] = "batch",
        padding: Literal["replicate", "constant", "reflect", "circular"] = "replicate",
        restart: float = 0.0,
        channels: int = 3,
    ):
        super().__init__()
        self.config = config = VQGANConfig(n_hiddens, downsample, embedding_dim, n_codes, norm, padding, channels)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.pre_vq_conv = Conv(self.encoder.out_channels, embedding_dim, 1)
        self.post_vq_conv = Conv(embedding_dim, self.encoder.out_channels, 1)
        self.codebook = Codebook(n_codes, embedding_dim, restart)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> Tensor:
        """Returns the tokens of clips: (B, 3, T, H, W) in [-1, 1] -> (B, t, h, w) int64.

        A whole clip at once; `models.tats.chunks` goes through a long film in bounded memory, with the same result.
        """
        check_clip(x, self.config, self.device)
        check_range(x)
        return self.quantise(self.latents(x))

    def decode(self, indices: Tensor) -> Tensor:
        """Returns the clips of tokens, not clamped: (B, t, h, w) -> (B, 3, T, H, W)."""
        check_indices(indices, self.config, self.device)
        return self.from_latents(self.codebook.look_up(indices))

    def forward(self, x: Tensor) -> tuple[Tensor, Quantised]:
        """Returns the clips after encoding, quantisation and decoding, and what the codebook made of them."""
        check_clip(x, self.config, self.device)
        quantised = self.codebook(self.latents(x))
        return self.from_latents(quantised.embeddings), quantised

    def latents(self, x: Tensor) -> Tensor:
        """Returns the latents before quantisation, (B, D, t, h, w)."""
        self.check_parts("VQGAN")
        x = (0.5 * x).to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        return self.pre_vq_conv(self.encoder(x))

    def quantise(self, z: Tensor) -> Tensor:
        """Returns the tokens of latents (B, D, t, h, w)."""
        training = self.codebook.training
        try:
            return self.codebook.eval()(z).indices
        finally:
            self.codebook.train(training)

    def from_latents(self, z: Tensor) -> Tensor:
        """Decodes latents or codes (B, D, t, h, w)."""
        self.check_parts("VQGAN")
        z = z.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        return 2 * self.decoder(self.post_vq_conv(z))

    @property
    def dtype(self) -> torch.dtype:
        return weight_of(self.pre_vq_conv.conv).dtype

    @property
    def device(self) -> torch.device:
        return weight_of(self.pre_vq_conv.conv).device

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.config).items())
