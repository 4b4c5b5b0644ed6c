"""The oracle of the 3D-VQGAN of TATS: the authors' formula, layer by layer, in plain torch on values in [-0.5, 0.5].

Every convolution is a padding pass and an unpadded convolution, the codebook a dense one-hot matrix. Batch norm stands
for the authors' SyncBatchNorm, which has the same keys.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaddedConv(nn.Module):
    """A convolution after padding by (kernel - stride) on each axis, the larger half in front."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: tuple[int, ...] = (1, 1, 1), mode: str = "replicate"
    ):
        super().__init__()
        self.pads = pads_of(kernel, stride)
        self.mode = mode
        self.conv = nn.Conv3d(c_in, c_out, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads, mode=self.mode))


class PaddedConvTranspose(nn.Module):
    """A transposed convolution after the same padding of its input, cropped by kernel - 1 on both sides."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: tuple[int, ...]):
        super().__init__()
        self.pads = pads_of(kernel, stride)
        self.convt = nn.ConvTranspose3d(c_in, c_out, kernel, stride, padding=kernel - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convt(F.pad(x, self.pads, mode="replicate"))


def pads_of(kernel: int, stride: Sequence[int]) -> list[int]:
    """F.pad's list, last axis first: kernel - stride on each axis, the larger half in front."""
    total = [kernel - s for s in reversed(stride)]
    return [part for p in total for part in (p - p // 2, p // 2)]


def norm_of(channels: int, kind: str) -> nn.Module:
    return nn.GroupNorm(32, channels, eps=1e-6) if kind == "group" else nn.BatchNorm3d(channels)


class ResBlock(nn.Module):
    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.norm1, self.conv1 = norm_of(channels, norm), PaddedConv(channels, channels, 3)
        self.norm2, self.conv2 = norm_of(channels, norm), PaddedConv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def strides_of(downsample: Sequence[int]) -> list[tuple[int, ...]]:
    """The stride of each block: 2 on an axis for log2 of its factor blocks, then 1."""
    halvings = [int(math.log2(d)) for d in downsample]
    return [tuple(2 if n > i else 1 for n in halvings) for i in range(max(halvings))]


class Encoder(nn.Module):
    def __init__(self, width: int, downsample: Sequence[int], norm: str, padding: str, colours: int = 3):
        super().__init__()
        self.conv_first = PaddedConv(colours, width, 3, mode=padding)
        self.conv_blocks = nn.ModuleList()
        for i, stride in enumerate(strides_of(downsample)):
            block = nn.Module()
            block.down = PaddedConv(width * 2**i, width * 2 ** (i + 1), 4, stride, padding)
            block.res = ResBlock(width * 2 ** (i + 1), norm)
            self.conv_blocks.append(block)
        self.out_channels = width * 2 ** len(self.conv_blocks)
        self.final_block = nn.Sequential(norm_of(self.out_channels, norm), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_first(x)
        for block in self.conv_blocks:
            h = block.res(block.down(h))
        return self.final_block(h)


class Decoder(nn.Module):
    def __init__(self, width: int, upsample: Sequence[int], norm: str, colours: int = 3):
        super().__init__()
        strides = strides_of(upsample)
        channels = width * 2 ** len(strides)
        self.final_block = nn.Sequential(norm_of(channels, norm), nn.SiLU())
        self.conv_blocks = nn.ModuleList()
        for i, stride in enumerate(strides):
            out = width * 2 ** (len(strides) - i)
            block = nn.Module()
            block.up = PaddedConvTranspose(channels, out, 4, stride)
            block.res1, block.res2 = ResBlock(out, norm), ResBlock(out, norm)
            self.conv_blocks.append(block)
            channels = out
        self.conv_last = PaddedConv(channels, colours, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.final_block(x)
        for block in self.conv_blocks:
            h = block.res2(block.res1(block.up(h)))
        return self.conv_last(h)


class Codebook(nn.Module):
    """Nearest codes by a full matrix of distances; in training, codes are averages of the latents that chose them."""

    def __init__(self, n_codes: int, width: int):
        super().__init__()
        self.register_buffer("embeddings", torch.randn(n_codes, width))
        self.register_buffer("N", torch.zeros(n_codes))
        self.register_buffer("z_avg", self.embeddings.clone())

    def start(self, rows: Tensor) -> None:
        """Takes these latents (n_codes, width) as the codes."""
        self.embeddings.copy_(rows)
        self.z_avg.copy_(rows)
        self.N.fill_(1)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        flat = z.movedim(1, -1).flatten(0, -2)  # (M, width)
        codes = self.embeddings
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ codes.t() + codes.t().square().sum(0, keepdim=True)
        chosen = distances.argmin(1)
        onehot = F.one_hot(chosen, len(codes)).to(flat)
        indices = chosen.view(z.shape[0], *z.shape[2:])
        embeddings = F.embedding(indices, codes).movedim(-1, 1)
        commitment = 0.25 * F.mse_loss(z, embeddings.detach())
        if self.training:
            self.follow(flat.detach(), onehot)
        share = onehot.mean(0)
        return {
            "embeddings": (embeddings - z).detach() + z,
            "encodings": indices,
            "commitment_loss": commitment,
            "perplexity": torch.exp(-(share * torch.log(share + 1e-10)).sum()),
        }

    @torch.no_grad()
    def follow(self, flat: Tensor, onehot: Tensor) -> None:
        """Moves the counts and sums by 1 %, and sets the codes to their quotients with Laplace-smoothed counts."""
        self.N.mul_(0.99).add_(onehot.sum(0), alpha=0.01)
        self.z_avg.mul_(0.99).add_((flat.t() @ onehot).t(), alpha=0.01)
        total = self.N.sum()
        weights = (self.N + 1e-7) / (total + len(self.N) * 1e-7) * total
        self.embeddings.copy_(self.z_avg / weights[:, None])


class VQGAN(nn.Module):
    def __init__(
        self,
        n_hiddens: int = 32,
        downsample: Sequence[int] = (4, 8, 8),
        embedding_dim: int = 256,
        n_codes: int = 16384,
        norm: str = "batch",
        padding: str = "replicate",
        channels: int = 3,
    ):
        super().__init__()
        self.encoder = Encoder(n_hiddens, downsample, norm, padding, channels)
        self.decoder = Decoder(n_hiddens, downsample, norm, channels)
        self.pre_vq_conv = PaddedConv(self.encoder.out_channels, embedding_dim, 1, mode=padding)
        self.post_vq_conv = PaddedConv(embedding_dim, self.encoder.out_channels, 1)
        self.codebook = Codebook(n_codes, embedding_dim)

    def latents(self, x: Tensor) -> Tensor:
        return self.pre_vq_conv(self.encoder(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.codebook(self.latents(x))["encodings"]

    def decode(self, indices: Tensor) -> Tensor:
        return self.decoder(self.post_vq_conv(F.embedding(indices, self.codebook.embeddings).movedim(-1, 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.codebook(self.latents(x))
        return self.decoder(self.post_vq_conv(out["embeddings"])), out


class Discriminator(nn.Module):
    """Five convolutions of kernel 4 over pictures (axes 2) or clips (axes 3); returns the features of each."""

    def __init__(self, axes: int, width: int = 64, layers: int = 3):
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d
        self.model0 = nn.Sequential(conv(3, width, 4, 2, 2), nn.LeakyReLU(0.2))
        c = width
        for i in range(1, layers + 1):
            out = min(2 * c, 512)
            stride = 2 if i < layers else 1
            layer = nn.Sequential(conv(c, out, 4, stride, 2), norm(out), nn.LeakyReLU(0.2))
            setattr(self, f"model{i}", layer)
            c = out
        setattr(self, f"model{layers + 1}", nn.Sequential(conv(c, 1, 4, 1, 2)))
        self.stages = layers + 2

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i in range(self.stages):
            x = getattr(self, f"model{i}")(x)
            features.append(x)
        return features


def generator_loss(
    x: Tensor,
    made: Tensor,
    commitment: Tensor,
    frames: Tensor,
    image: Callable[[Tensor], list[Tensor]],
    video: Callable[[Tensor], list[Tensor]],
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    factor: float = 1.0,
    l1: float = 4.0,
    perceptual_weight: float = 4.0,
    image_gan: float = 1.0,
    video_gan: float = 1.0,
    matching: float = 4.0,
) -> dict[str, Tensor]:
    """The generator's terms and their sum: x and made (B, 3, T, H, W), one frame of each clip by its number."""
    rows = torch.arange(len(x), device=x.device)
    picture, made_picture = x[rows, :, frames], made[rows, :, frames]
    terms = {"l1": l1 * F.l1_loss(made, x), "commitment": commitment}
    if perceptual is not None:
        terms["perceptual"] = perceptual_weight * perceptual(picture, made_picture).mean()
    fake_i, fake_v = image(made_picture), video(made)
    terms["gan"] = -factor * (image_gan * fake_i[-1].mean() + video_gan * fake_v[-1].mean())
    stages = len(fake_i) - 1
    parts: list[Tensor] = []
    for weight, fake, true in ((image_gan, fake_i, image(picture)), (video_gan, fake_v, video(x))):
        if weight > 0:
            parts += [F.l1_loss(f, t.detach()) * (4 / stages) for f, t in zip(fake[:-1], true[:-1], strict=True)]
    terms["matching"] = factor * matching * sum(parts, start=x.new_zeros(()))
    terms["loss"] = torch.stack(list(terms.values())).sum()
    return terms


def discriminator_loss(true: Tensor, fake: Tensor, kind: str = "hinge") -> Tensor:
    """Hinge, or vanilla: the discriminator's logits of real and of decoded clips."""
    if kind == "hinge":
        return 0.5 * (F.relu(1 - true).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-true).mean() + F.softplus(fake).mean())
