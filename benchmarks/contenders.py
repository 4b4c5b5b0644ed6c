"""The contenders: the oracle eager (upstream's code path), with SDPA, compiled; the matrix products alone; and ours."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import race
from benchmarks.race import ceilings
from latte_fast import Latte, backends, ops, reference, testing, use_backend
from latte_fast.config import PRESETS, SIZES
from latte_fast.ops import linear_layer

FRAMES, SIDE = 16, 32
WIDTHS = {size: (width, heads) for size, (_, width, heads) in SIZES.items()}
# seconds that a model may take: a slower one is cut to the blocks that fit, and its title says so
PATIENCE = 0.6


def shrink() -> None:
    """Shrinks all sizes, so that every benchmark can be tried in a moment; called before the suites are imported."""
    global FRAMES, SIDE, WIDTHS
    FRAMES, SIDE = 2, 8
    WIDTHS = dict.fromkeys(WIDTHS, (64, 2))
    race.PRODUCT = (64, 64, 64)
    race.COPIED = dict.fromkeys(race.COPIED, 1 << 20)
    for kwargs in PRESETS.values():
        kwargs |= {"hidden_size": 64, "num_heads": 2, "depth": 2}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def large(*values: Any) -> Any:
    """Marks parameters that a GPU runs by default and a CPU, which takes minutes for a lap, only with --full."""
    return pytest.param(*values, marks=() if torch.cuda.is_available() else pytest.mark.full)


def op_clips() -> int:
    """Returns the clips in races of ops: 1, or on a GPU so many that no tensor stays in the L2 between laps."""
    return 32 if torch.cuda.is_available() else 1


def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(run)


def affordable(name: str, batch: int, passes: int = 1) -> int:
    """Returns how many of a preset's blocks, even and at least 4, have GEMMs of PATIENCE seconds in all passes."""
    preset = PRESETS[name]
    tokens = passes * batch * FRAMES * (SIDE // preset["patch_size"]) ** 2
    seconds = 24 * preset["hidden_size"] ** 2 * tokens / ceilings()["gemm"]
    return min(preset["depth"], max(4, 2 * int(PATIENCE / seconds / 2)))


def titled(name: str, depth: int, dtype: torch.dtype, batch: int = 1) -> str:
    whole = PRESETS[name]["depth"]
    part = "" if depth == whole else f", {depth} of its {whole} blocks"
    clips = "" if batch == 1 else f", {batch} clips"
    return f"{name}{part}, {str(dtype).removeprefix('torch.')}{clips}"


@functools.lru_cache(maxsize=1)
def models(
    name: str,
    dtype: torch.dtype,
    batch: int,
    depth: int,
    train: bool = False,
    frames: int = 0,
    side: int = 0,
) -> tuple[nn.Module, nn.Module, tuple]:
    """Returns (oracle, ours, inputs), with the same refilled weights; by default 16 frames of 256 x 256 pixels."""
    frames, side = frames or FRAMES, side or SIDE
    torch.manual_seed(0)
    kwargs = PRESETS[name] | {"depth": depth, "num_frames": frames, "input_size": side}
    with device():  # 674 million weights are drawn in a moment there
        oracle = reference.latte.Latte(**kwargs)
        ours = Latte(**kwargs)
    testing.refill(oracle)
    ours.load_state_dict(oracle.state_dict())
    ours.replays_few_clips = False  # a race has both, by name
    x = torch.randn(batch, frames, 4, side, side).to(device(), dtype)
    t = torch.randint(0, 1000, (batch,)).to(device())
    return oracle.to(device(), dtype).train(train), ours.to(device(), dtype).train(train), (x, t)


def flops(name: str, batch: int, depth: int) -> int:
    """Returns the operations of a forward's linear layers, without attention."""
    d, tokens = PRESETS[name]["hidden_size"], batch * FRAMES * (SIDE // PRESETS[name]["patch_size"]) ** 2
    return 24 * d * d * tokens * depth


def products(name: str, dtype: torch.dtype, batch: int, depth: int, training: bool = False) -> Callable[[], None]:
    """Returns a run of every block's four linear layers, without bias, into reused buffers: the floor of a forward.

    `training` runs their two gradients as well, of the input and of the weight: the floor of a step.
    """
    d, tokens = PRESETS[name]["hidden_size"], batch * FRAMES * (SIDE // PRESETS[name]["patch_size"]) ** 2

    def rows(n: int) -> Tensor:
        return torch.randn(tokens, n, device=device()).to(dtype)

    x, wide = rows(d), rows(4 * d)
    layers = [(x, 3 * d), (x, d), (x, 4 * d), (wide, d)]
    weights = [torch.randn(n, i.shape[1], device=device()).to(dtype) / i.shape[1] ** 0.5 for i, n in layers]
    outs = [rows(n) for _, n in layers]
    douts, dx, dw = ([torch.randn_like(t) for t in some] for some in (outs, [i for i, _ in layers], weights))

    def run() -> None:
        for _ in range(depth):
            for (i, _), w, out in zip(layers, weights, outs, strict=True):
                torch.mm(i, w.t(), out=out)
        for _ in range(depth if training else 0):
            for (i, _), w, dout, to_x, to_w in zip(layers, weights, douts, dx, dw, strict=True):
                torch.mm(dout, w, out=to_x)
                torch.mm(dout.t(), i, out=to_w)

    return no_grad(run)


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, **options)


def sharing_weights(model: nn.Module) -> nn.Module:
    """Returns a copy of a model's modules around the same parameters and buffers."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def compiled_blocks(model: nn.Module) -> nn.Module:
    """Returns the model with its blocks compiled one by one, in seconds; a deep model in one graph takes minutes.

    The blocks of a list are one piece of code on other weights, so each kind is compiled once.
    """
    torch._dynamo.reset()
    model = sharing_weights(model)
    for blocks in (m for m in model.modules() if isinstance(m, nn.ModuleList)):
        for block in blocks:
            block.compile(dynamic=False)
    return model


def as_shipped(oracle: nn.Module, inputs: tuple) -> Callable[[], Tensor]:
    """Returns a forward as upstream's scripts run it: fp32 weights, products in TF32."""
    wide = copy.deepcopy(oracle).float()
    wide_inputs = tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    @torch.no_grad()
    def run() -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return wide(*wide_inputs)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run


def by_torch(run: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a run whose linear layers' products are torch's, whatever this GPU's table names."""

    def call() -> Any:
        before = linear_layer._has_products
        linear_layer._has_products = lambda device: False
        try:
            return run()
        finally:
            linear_layer._has_products = before

    return call


def with_sdpa(model: nn.Module) -> Callable[..., Tensor]:
    """Returns the oracle with torch's scaled_dot_product_attention in its own layouts."""
    from latte_fast.reference import blocks, latte_t2v

    def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    def run(*args: Any) -> Tensor:
        before = blocks.attention_ref
        blocks.attention_ref = latte_t2v.attention_ref = sdpa
        try:
            return model(*args)
        finally:
            blocks.attention_ref = latte_t2v.attention_ref = before

    return run


def model_gate(oracle: nn.Module, ours: nn.Module, inputs: tuple) -> Callable[[], None]:
    """Returns a check by the tests' criterion of the very models that race."""

    @torch.no_grad()
    def check() -> None:
        got, same = ours(*inputs), oracle(*inputs)
        dtype = inputs[0].dtype
        if dtype == torch.float32:
            assert testing.relative_error(got, same) <= 6e-6  # each is within 3e-6 of float64
            return
        exact = oracle.float()(inputs[0].float(), *inputs[1:])
        oracle.to(dtype)
        testing.assert_no_worse_than_torch("output", got, same, exact)

    return check


def gated(check: Callable[[], None], run: Callable[[], Any]) -> Callable[[], Any] | str:
    """Returns a contender, or the reason that its own check failed for, so that the others still race."""
    try:
        check()
    except (AssertionError, RuntimeError) as error:
        return f"its check failed: {(str(error).strip() or repr(error)).splitlines()[0]}"
    return run


def through(backend: str, qkv: Tensor, axis: str) -> Tensor:
    with use_backend(axis_attention=backend):
        return ops.axis_attention_qkv(qkv, axis)


def libraries(qkv: Tensor, axis: str) -> dict[str, Callable | str]:
    """Returns other libraries' attention on the same views; on a GPU flash-attn and xformers too, or why not."""
    names = {"sdpa": "SDPA on strided views"}
    if torch.cuda.is_available():
        names |= {"cudnn": "cuDNN", "flash_attn": "flash-attn", "xformers": "xformers"}
    found: dict[str, Callable | str] = {}
    for backend, name in names.items():
        q, k, v = qkv.unbind(3)
        reason = backends.why_not("axis_attention", backend, q, k, v, axis, None, 1.0, None)
        found[name] = reason or no_grad(functools.partial(through, backend, qkv, axis))
    return found
