"""The text-to-video model at its published width, 4 + 4 blocks, 16 x 256 x 256, against diffusers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bytes import peak_bytes
from benchmarks.contenders import FRAMES, SIDE, compiled, compiled_blocks, device, gated, large, no_grad, with_sdpa
from latte_fast import LatteT2V, Replay, reference, testing

LAYERS, TOKENS = 4, 120
DIFFUSERS = {"attention_bias": True, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000}
DIFFUSERS |= {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6}
HEADS = 16 if SIDE == 32 else 2
SHAPE = {"num_attention_heads": HEADS, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "patch_size": 2}
SHAPE |= {"cross_attention_dim": 72 * HEADS, "caption_channels": 4096, "video_length": FRAMES}


class Plain(nn.Module):
    """A model whose output object is its tensor."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> Tensor:
        return self.model(*args).sample


@pytest.mark.quick
@pytest.mark.parametrize(("side", "layers"), [(SIDE, LAYERS), large(2 * SIDE, 28)], ids=["256px", "512px"])
def test_forward(side: int, layers: int, compare: Any) -> None:
    """Races one step, on a GPU with guidance; the prompt stays the same from lap to lap, as in sampling."""
    clips = 2 if torch.cuda.is_available() else 1
    torch.manual_seed(0)
    with device():
        ours = LatteT2V(**SHAPE, num_layers=layers, sample_size=side).eval()
        oracle = reference.latte_t2v.LatteT2V(**SHAPE, num_layers=layers, sample_size=side).eval()
    oracle.load_state_dict(ours.state_dict())
    ours, oracle = ours.to(device(), torch.bfloat16), oracle.to(device(), torch.bfloat16)
    x = torch.randn(clips, 4, FRAMES, side, side, device=device()).bfloat16()
    t, text = torch.tensor([500], device=device()), torch.randn(clips, TOKENS, 4096, device=device()).bfloat16()

    @torch.no_grad()
    def check() -> None:
        got, same = ours(x, t, text).sample, oracle(x, t, text)
        exact = oracle.float()(x.float(), t, text.float())
        oracle.bfloat16()
        testing.assert_no_worse_than_torch("output", got, same, exact)

    contenders: dict[str, Any] = {"ours": no_grad(lambda: ours(x, t, text))}
    try:
        from diffusers import LatteTransformer3DModel
    except ImportError:
        contenders |= dict.fromkeys(("diffusers eager", "diffusers under torch.compile"), "diffusers is not installed")
        # the oracle has diffusers' numbers and layout copies
        contenders["oracle eager"] = no_grad(lambda: oracle(x, t, text))
        if torch.cuda.is_available():
            sdpa, by_block = with_sdpa(oracle), with_sdpa(compiled_blocks(oracle))
            contenders["oracle with SDPA"] = no_grad(lambda: sdpa(x, t, text))
            contenders["oracle with SDPA, blocks under torch.compile"] = no_grad(lambda: by_block(x, t, text))
        else:
            jit = compiled(oracle)
            contenders["oracle under torch.compile"] = no_grad(lambda: jit(x, t, text))
    else:
        theirs = LatteTransformer3DModel(**SHAPE, **DIFFUSERS, num_layers=layers, sample_size=side).eval()
        theirs.load_state_dict(ours.state_dict())
        theirs = theirs.to(device(), torch.bfloat16)
        jit = compiled(theirs)
        contenders["diffusers eager"] = no_grad(lambda: theirs(x, t, text))
        contenders["diffusers under torch.compile"] = no_grad(lambda: jit(x, t, text))
    if torch.cuda.is_available():
        replayed = Replay(Plain(ours))

        @torch.no_grad()
        def same_bits() -> None:
            assert torch.equal(replayed(x, t, text), ours(x, t, text).sample)

        contenders["ours, replayed as a CUDA graph"] = gated(same_bits, no_grad(lambda: replayed(x, t, text)))
    names = [n for n in ("ours", "diffusers eager", "oracle eager") if callable(contenders.get(n))]
    each = {n: {"peak_bytes": peak_bytes(contenders[n])} for n in names}
    guided = ", with guidance" if clips == 2 else ""
    title = f"LatteT2V, {layers} + {layers} blocks, {8 * side} px, bfloat16, forward{guided}"
    compare(title, contenders, check, seconds=10.0, each=each)
