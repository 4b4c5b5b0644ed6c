"""The 3D-VQGAN against the authors' formula in float64; its counts, keys and checks."""

from typing import Any

import pytest
import torch
from torch import Tensor

import latte_fast
from latte_fast import VQGAN, reference
from latte_fast.testing import assert_no_worse_than_torch, relative_error
from tests.helpers.tiny_vqgan import TINY, clip, pair

CELLS = [
    pytest.param({}, id="batch"),
    pytest.param({"n_hiddens": 16, "norm": "group", "downsample": (2, 4, 2), "n_codes": 24}, id="group"),
    pytest.param({"downsample": (4, 2, 8)}, id="other-strides"),
    pytest.param({"padding": "constant", "downsample": (1, 2, 4)}, id="zeros"),
    pytest.param({"channels": 1, "downsample": (2, 4, 4)}, id="sounds"),
]
LIMITS = [(torch.float32, 3e-6), (torch.float64, 1e-11)]


def size_of(cell: dict[str, Any]) -> dict[str, int]:
    if "norm" in cell:  # 32 groups need many channels
        return {"frames": 4, "size": 8, "width": 12}
    return {"frames": 8, "size": 16, "width": 24}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("dtype", "limit"), LIMITS, ids=["fp32", "fp64"])
def test_parts_equal_the_oracle(cell: dict[str, Any], dtype: torch.dtype, limit: float) -> None:
    ours, oracle = pair(dtype, **cell)
    x = clip(**size_of(cell)).to(dtype)[:, : ours.config.channels]
    with torch.no_grad():
        z, want = ours.latents(x), oracle.latents(x.double() / 2)
        assert relative_error(z, want) <= limit
        assert_indices(ours.encode(x), want, oracle)
        indices = oracle.encode(x.double() / 2)
        assert relative_error(ours.decode(indices), 2 * oracle.decode(indices)) <= limit
        made, quantised = ours(x)
        assert torch.equal(made, ours.decode(quantised.indices))


def assert_indices(got: Tensor, latents: Tensor, oracle: Any) -> None:
    """Equal wherever the two nearest codes differ by more than 1e-5, and most codes are in use."""
    flat = latents.movedim(1, -1).flatten(0, -2)
    near = torch.cdist(flat, oracle.codebook.embeddings).square().topk(2, largest=False)
    sure = near.values[:, 1] - near.values[:, 0] > 1e-5
    assert torch.equal(got.flatten()[sure], near.indices[sure, 0])
    assert sure.float().mean() > 0.9
    assert len(near.indices[:, 0].unique()) >= 0.5 * len(oracle.codebook.embeddings)


@pytest.mark.parametrize("cell", CELLS[:2])
@pytest.mark.parametrize(("dtype", "limit"), LIMITS, ids=["fp32", "fp64"])
def test_training_step_equals_the_oracle(cell: dict[str, Any], dtype: torch.dtype, limit: float) -> None:
    """Statistics of the batch, gradients through them, and the straight path past the codes."""
    ours, oracle = pair(dtype, **cell)
    ours.train(), oracle.train()
    x = clip(**size_of(cell)).to(dtype)
    made, quantised = ours(x)
    want, out = oracle(x.double() / 2)
    dout = torch.randn(made.shape, generator=torch.Generator().manual_seed(3)).double()
    sure = quantised.indices == out["encodings"]
    assert sure.float().mean() > 0.97
    if sure.all():
        (made * dout.to(dtype)).sum().add(quantised.commitment.mean() * 100).backward()
        (2 * want * dout).sum().add(out["commitment_loss"] * 100).backward()
        assert relative_error(made, 2 * want) <= limit
        assert relative_error(quantised.commitment.mean(), out["commitment_loss"]) <= limit
        assert relative_error(quantised.perplexity, out["perplexity"]) <= 1e-6
        largest = max(p.grad.abs().max().item() for p in oracle.parameters())
        for (name, p), q in zip(ours.named_parameters(), oracle.parameters(), strict=True):
            error = (p.grad.double() - q.grad).abs().max().item()
            # biases before a norm over a batch have no gradient in exact arithmetic, and only rounding's here
            assert error <= limit * (10 * q.grad.abs().max().item() + 4 * largest), name
        for (name, p), q in zip(ours.named_buffers(), oracle.buffers(), strict=True):
            assert relative_error(p, q) <= 10 * limit, name
    else:
        pytest.fail("a token lies between two codes: draw another clip")


def test_counts() -> None:
    model = VQGAN()
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == [7_403_648, 16_116_995]
    assert sum(p.numel() for m in (model.pre_vq_conv, model.post_vq_conv) for p in m.parameters()) == 131_584
    assert model.codebook.embeddings.shape == (16384, 256)
    assert latte_fast.VQGAN is VQGAN


@pytest.mark.parametrize("cell", CELLS)
def test_keys_are_the_authors(cell: dict[str, Any]) -> None:
    given = TINY | cell
    ours, oracle = VQGAN(**given), reference.vqgan.VQGAN(**given)
    ours.load_state_dict(oracle.state_dict(), strict=True)
    oracle.load_state_dict(ours.state_dict(), strict=True)
    wanted = {
        "encoder.conv_first.conv.weight", "encoder.conv_blocks.0.down.conv.bias",
        "encoder.conv_blocks.1.res.norm1.weight", "encoder.conv_blocks.0.res.conv1.conv.weight",
        "encoder.final_block.0.bias", "pre_vq_conv.conv.weight", "codebook.embeddings", "codebook.N", "codebook.z_avg",
        "post_vq_conv.conv.bias", "decoder.final_block.0.weight", "decoder.conv_blocks.0.up.convt.weight",
        "decoder.conv_blocks.1.res2.conv2.conv.bias", "decoder.conv_last.conv.weight",
    }  # fmt: skip
    assert wanted <= ours.state_dict().keys()


def test_halves_keep_the_codebook_and_norms_wide() -> None:
    ours, oracle = pair()
    half = ours.to(torch.bfloat16)
    assert half.codebook.embeddings.dtype == half.decoder.final_block[0].weight.dtype == torch.float32
    x = clip()
    with torch.no_grad():
        indices = half.encode(x)
        out, same = half.decode(indices), oracle.to(torch.bfloat16)
        oracle.codebook.double()
        want = oracle.double().decode(indices)
        same = 2 * same.to(torch.bfloat16).decode(indices)
        assert_no_worse_than_torch("decode", out, same, 2 * want)


BAD = [
    (lambda m: m.encode(torch.zeros(1, 3, 3, 16, 16)), "frames must be a multiple of the downsampling's 2, got 3"),
    (lambda m: m.encode(torch.zeros(1, 3, 2, 16, 18)), "width must be a multiple of the downsampling's 4, got 18"),
    (lambda m: m(torch.zeros(1, 2, 3, 16, 16)), r"x must be \(B, 3, T, H, W\), got \(1, 2, 3, 16, 16\)"),
    (lambda m: m.encode(torch.full((1, 3, 2, 16, 16), 255.0)), r"x must be in \[-1, 1\], got values in \[255, 255\]"),
    (lambda m: m.encode(torch.full((1, 3, 2, 16, 16), float("nan"))), "x must be in"),
    (lambda m: m.decode(torch.full((1, 2, 2, 2), 40)), r"indices must be in 0 .. 39, got 40 .. 40"),
    (lambda m: m.decode(torch.full((1, 2, 2, 2), -1)), r"indices must be in 0 .. 39, got -1 .. -1"),
    (lambda m: m.decode(torch.zeros(1, 2, 2, 2)), r"indices must be \(B, t, h, w\) int64, got"),
    (lambda m: VQGAN(downsample=(3, 4, 4)), "downsample must be three powers of two"),
    (lambda m: VQGAN(n_hiddens=20, norm="group"), "n_hiddens must be a multiple of 16 for group norm, got 20"),
    (lambda m: VQGAN(norm="layer"), "norm must be batch or group, got 'layer'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(VQGAN(**TINY).eval())
