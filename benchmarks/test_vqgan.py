"""The 3D-VQGAN: decoding, encoding and a training step, against the authors' formula and its convolutions alone."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import contenders as sizes
from benchmarks.contenders import compiled, device, no_grad
from latte_fast import VQGAN, reference, testing

HALF, FULL = torch.bfloat16, torch.float32
DTYPES = [pytest.param(HALF, marks=pytest.mark.quick), pytest.param(FULL, marks=pytest.mark.full)]


def given() -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The authors' sizes, and small ones where every benchmark is tried in a moment."""
    if sizes.SIDE < 32:
        return {"n_hiddens": 4, "embedding_dim": 16, "n_codes": 64}, (8, 16, 16)
    return {}, (16, 128, 128)


@functools.lru_cache(maxsize=1)
def models(dtype: torch.dtype) -> tuple[VQGAN, Any, Tensor]:
    """Ours, the oracle with the same weights, and a clip in [-1, 1]."""
    keywords, size = given()
    torch.manual_seed(0)
    ours = VQGAN(**keywords).eval()
    with torch.no_grad():
        for p in ours.parameters():
            if p.dim() == 5:
                p.normal_(std=(2 / p[0].numel()) ** 0.5)
    oracle = reference.vqgan.VQGAN(**keywords).eval()
    oracle.load_state_dict(ours.state_dict())
    x = torch.rand(1, 3, *size) * 2 - 1
    return ours.to(device(), dtype), oracle.to(device(), dtype), x.to(device(), dtype)


def gate(run: Callable[[Any], Tensor], ours: VQGAN, oracle: nn.Module, scale: float) -> Callable[[], None]:
    """Returns a check of ours, in its dtype, against the oracle in a wider one."""

    def check() -> None:
        full = ours.dtype == torch.float32
        wide = reference.vqgan.VQGAN(**given()[0]).eval().to(device(), torch.float64 if full else torch.float32)
        wide.load_state_dict(oracle.state_dict())
        with torch.no_grad():
            got, same, want = run(ours), run(oracle) * scale, run(wide) * scale
        if full:
            assert testing.relative_error(got, want) <= 3e-6
        else:
            testing.assert_no_worse_than_torch("output", got, same, want)

    return check


def convolutions(model: nn.Module, run: Callable[[], Any]) -> Callable[[], Any]:
    """Returns what runs a model's convolutions alone, on inputs of the shapes and layouts that they meet in `run`."""
    met: list[tuple[nn.Module, Tensor]] = []
    kinds = (nn.Conv3d, nn.ConvTranspose3d)
    layers = [m for m in model.modules() if isinstance(m, kinds)]
    hooks = [m.register_forward_pre_hook(lambda m, args: met.append((m, torch.randn_like(args[0])))) for m in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return no_grad(lambda: [layer(x) for layer, x in met])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode(dtype: torch.dtype, compare: Any) -> None:
    ours, oracle, x = models(dtype)
    with torch.no_grad():
        tokens = ours.encode(x)
    last = nn.Sequential(oracle.post_vq_conv, oracle.decoder)
    codes = oracle.codebook.embeddings[tokens].movedim(-1, 1).to(dtype)
    jit, laid_out = compiled(last), compiled_layout(last)
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(lambda: ours.decode(tokens)),
        "its convolutions alone": convolutions(ours.decoder, lambda: ours.decode(tokens)),
        "oracle eager (the authors' formula)": no_grad(lambda: last(codes)),
        "oracle eager, weights channels last": no_grad(lambda: laid_out(codes)),
        "oracle under torch.compile": no_grad(lambda: jit(codes)),
    }
    check = gate(lambda m: m.decode(tokens), ours, oracle, 2.0)
    compare(title(dtype, "decode"), contenders, check, seconds=20.0)


def compiled_layout(model: nn.Module) -> nn.Module:
    """Returns a copy whose weights lie channels last."""
    import copy

    return copy.deepcopy(model).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_encode(dtype: torch.dtype, compare: Any) -> None:
    ours, oracle, x = models(dtype)
    jit = compiled(oracle.encoder)
    contenders: dict[str, Callable | str] = {
        "ours": no_grad(lambda: ours.latents(x)),
        "its convolutions alone": convolutions(ours.encoder, lambda: ours.latents(x)),
        "oracle eager (the authors' formula)": no_grad(lambda: oracle.latents(0.5 * x)),
        "oracle under torch.compile": no_grad(lambda: oracle.pre_vq_conv(jit(0.5 * x))),
    }
    check = gate(lambda m: m.latents(scaled(m, x)), ours, oracle, 1.0)
    compare(title(dtype, "encode"), contenders, check, seconds=12.0)


def scaled(model: nn.Module, x: Tensor) -> Tensor:
    """What a model is given of a clip in [-1, 1]: the oracle sees half of the values."""
    return (x if isinstance(model, VQGAN) else 0.5 * x).to(next(model.parameters()).dtype)


@pytest.mark.full
def test_training_step(compare: Any) -> None:
    """Forward and backward of L1 and commitment in fp32, without an update; codes do not move."""
    ours, oracle, x = models(FULL)

    def step(model: Any, x: Tensor, commitment: Callable[[Any], Tensor]) -> None:
        model.train()
        model.codebook.eval()
        made, out = model(x)
        ((made - x).abs().mean() + commitment(out)).backward()
        model.zero_grad()
        model.eval()

    contenders: dict[str, Callable | str] = {
        "ours": lambda: step(ours, x, lambda out: out.commitment.mean()),
        "oracle eager (the authors' formula)": lambda: step(oracle, 0.5 * x, lambda out: out["commitment_loss"]),
    }
    check = gate(lambda m: m.latents(scaled(m, x)), ours, oracle, 1.0)
    compare(title(FULL, "training step"), contenders, check, seconds=20.0)


def title(dtype: torch.dtype, what: str) -> str:
    size = "x".join(map(str, given()[1]))
    return f"3D-VQGAN {what}, {size}, {str(dtype).removeprefix('torch.')}"
