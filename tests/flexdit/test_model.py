"""FlexLatte against its oracle, against Latte, and against itself at densities where both have to agree."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latte_fast import Latte, testing
from latte_fast.models.flexdit.density import pool_tokens, upsample_tokens
from latte_fast.models.flexdit.from_dense import from_dense, kinds_of
from latte_fast.models.flexdit.model import FlexLatte
from latte_fast.reference.flex_latte import pool_tokens_ref, upsample_tokens_ref
from tests.helpers.flex import FLEX
from tests.helpers.pairs import SMALL, assert_gradients

CELLS: list[tuple[int, bool, int, dict[str, Any]]] = [
    (2, False, 0, {}),
    (2, True, 2, {}),
    (1, False, 0, {"time_pos": "rope"}),
    (78, False, 0, {"depth": 6, "layout": "D D GGRP", "variant": 0}),
    (1, False, 0, {"depth": 8, "layout": "PD GSGSRD", "patch_frames": 3}),
]
SLOW = [(extras, True, 1, {}) for extras in (1, 78)] + [
    (2, False, 0, {"depth": 12, "variant": 2, "layout": "PGSRDDDDPPDD"})
]


@pytest.mark.parametrize("cell", [*CELLS, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)], ids=str)
@pytest.mark.parametrize("side", [None, 2])
def test_float64_equals_oracle(cell: tuple, side: int | None, pair: Any, inputs: Any, run: Any) -> None:
    extras, joint, images, more = cell
    oracle, fast = pair(joint, torch.float64, extras=extras, **more)
    args, kwargs = inputs(oracle, images=images)
    kwargs["side"] = side
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:], dtype=torch.float64)
    exact, exact_grads = run(oracle.eval(), args, kwargs, dout)
    out, grads = run(fast.eval(), args, kwargs, dout)
    assert exact.abs().max() > 0
    assert testing.relative_error(out, exact) <= 1e-11
    assert_gradients(grads, exact_grads, 1e-11)


def test_float32_equals_oracle(pair: Any, inputs: Any, run: Any) -> None:
    oracle, fast = pair(extras=2, hidden_size=64)
    args, kwargs = inputs(oracle)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:])
    out, grads = run(fast.eval(), args, kwargs, dout)
    exact, exact_grads = run(oracle.double().eval(), (args[0].double(), args[1]), kwargs, dout)
    assert testing.relative_error(out, exact) <= 3e-6
    assert_gradients(grads, exact_grads, 3e-6)


@torch.no_grad()
def test_bfloat16_no_worse_than_torch(pair: Any, inputs: Any) -> None:
    oracle, fast = pair(extras=2, hidden_size=144)
    (x, t), kwargs = inputs(oracle)
    oracle, fast = oracle.bfloat16().eval(), fast.bfloat16().eval()
    same, got = oracle(x.bfloat16(), t, **kwargs), fast(x.bfloat16(), t, **kwargs)
    exact = oracle.float()(x.bfloat16().float(), t, **kwargs)
    testing.assert_no_worse_than_torch("output", got, same, exact)


def flexible(dense: Latte, layout: str, **kwargs: Any) -> FlexLatte:
    """Returns the FlexLatte of a layout with a dense model's weights, loaded strictly."""
    config = {k: v for k, v in vars(dense.config).items() if k not in ("layout", "sides")}
    fast = FlexLatte(**config, layout=layout, sides=kwargs.pop("sides", (2, 3)))
    state, report = from_dense(dense.state_dict(), fast.config.kinds)
    fast.load_state_dict(state)
    assert set(report.taken) | set(report.split) | set(report.new) == set(state)
    return fast.eval()


def dense_model(**kwargs: Any) -> Latte:
    torch.manual_seed(0)
    return testing.refill(Latte(**SMALL | {"depth": 8, "extras": 2} | kwargs)).eval()  # type: ignore[return-value]


def test_all_dense_layout_is_latte_bit_for_bit(inputs: Any, run: Any) -> None:
    dense = dense_model()
    fast = flexible(dense, "DDDDDDDD")
    args, kwargs = inputs(dense)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:])
    want, want_grads = run(dense, args, kwargs, dout)
    got, grads = run(fast, args, kwargs, dout)
    assert torch.equal(got, want) and want.abs().max() > 0
    assert all(torch.equal(grads[name], want_grads[name]) for name in want_grads)


@torch.no_grad()
def test_modules_at_full_density_are_dense_blocks(inputs: Any) -> None:
    """With M = N, W1 = I and W2 = 0 the sparse tokens are all tokens, and G and R ordinary attention."""
    dense = dense_model().double()
    fast = flexible(dense, "DD GSSSRD", sides=(2, 4)).double()
    recover = fast.blocks[6]
    recover.merged_layer1.weight.copy_(torch.eye(64))
    recover.merged_layer2.weight.zero_()
    args, kwargs = inputs(dense)
    want = dense(*args, **kwargs)
    assert testing.relative_error(fast(*args, **kwargs), want) <= 1e-11
    assert testing.relative_error(fast(*args, **kwargs, side=2), want) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("block", [0, 1])
def test_uniform_attention_is_a_pooling_block(block: int, inputs: Any) -> None:
    """Over space, and over time where positions are added before it."""
    dense = dense_model().double()
    dense.blocks[block].attn.qkv.weight[:128] = 0
    dense.blocks[block].attn.qkv.bias[:128] = 0
    fast = flexible(dense, "".join("P" if i == block else "D" for i in range(8))).double()
    args, kwargs = inputs(dense)
    assert testing.relative_error(fast(*args, **kwargs), dense(*args, **kwargs)) <= 1e-11


@torch.no_grad()
def test_module_starts_as_a_skip(inputs: Any) -> None:
    """W1 = 0 and W2 = I: what G and S compute reaches the tokens only as keys and values of R."""
    dense = dense_model()
    fast = flexible(dense, "DD GSSSRD")
    fast.blocks[6].attn.proj.weight.zero_()
    args, kwargs = inputs(dense)
    before = fast(*args, **kwargs)
    for p in fast.blocks[3].parameters():
        p.add_(1.0)
    assert torch.equal(fast(*args, **kwargs), before)


@pytest.mark.parametrize("policy", ["elementwise", "mlp", "block"])
def test_recompute_gives_the_same_gradients(policy: str, pair: Any, inputs: Any, run: Any) -> None:
    oracle, fast = pair(dtype=torch.float64, extras=2)
    args, kwargs = inputs(oracle)
    dout = torch.randn(*args[0].shape[:2], 8, *args[0].shape[3:], dtype=torch.float64)
    _, exact = run(fast.eval(), args, kwargs, dout)
    fast.recompute = policy
    _, grads = run(fast, args, kwargs, dout)
    assert_gradients(grads, exact, 1e-11)


SIZES = [((4, 4), (3, 3)), ((16, 16), (5, 5)), ((7, 3), (5, 2)), ((5, 5), (5, 5)), ((46, 2), (28, 1)), ((4, 6), (1, 2))]


@pytest.mark.parametrize(("grid", "sparse"), SIZES, ids=str)
def test_pooling_and_upsampling(grid: tuple[int, int], sparse: tuple[int, int]) -> None:
    """On strided views too; upsampling 46 from 28 differs from torch's, which rounds the ratio."""
    x = torch.randn(2, 3, grid[0] * grid[1], 10, dtype=torch.float64)[..., :8]
    s = torch.randn(2, 3, sparse[0] * sparse[1], 10, dtype=torch.float64)[..., :8]
    torch.testing.assert_close(
        pool_tokens(x, grid, sparse).flatten(0, 1), pool_tokens_ref(x.flatten(0, 1), grid, sparse)
    )
    assert torch.equal(
        upsample_tokens(s, grid, sparse).flatten(0, 1), upsample_tokens_ref(s.flatten(0, 1), grid, sparse)
    )


@pytest.mark.parametrize(("grid", "sparse"), SIZES, ids=str)
def test_pooling_and_upsampling_gradients(grid: tuple[int, int], sparse: tuple[int, int]) -> None:
    """Those of the oracle, and by gathering alone: what adds atomically on a GPU is not called."""
    seen: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func.overloadpacket.__name__)
            return func(*args, **kwargs or {})

    for ours, ref, start in ((pool_tokens, pool_tokens_ref, grid), (upsample_tokens, upsample_tokens_ref, sparse)):
        x = torch.randn(2, 3, start[0] * start[1], 8, dtype=torch.float64, requires_grad=True)
        want = ref(x.flatten(0, 1), grid, sparse)
        dout = torch.randn(2, 3, *want.shape[1:], dtype=torch.float64)
        (exact,) = torch.autograd.grad(want, x, dout.flatten(0, 1))
        out = ours(x, grid, sparse)
        with Names():
            (got,) = torch.autograd.grad(out, x, dout)
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)
        half = x.detach().bfloat16().requires_grad_()
        (rounded,) = torch.autograd.grad(ours(half, grid, sparse), half, dout.bfloat16())
        assert rounded.dtype == torch.bfloat16 and testing.relative_error(rounded.double(), exact) < 0.02
    assert not seen & {"index_add", "index_add_", "index_put", "_adaptive_avg_pool2d_backward", "scatter_add"}
    assert seen or grid == sparse


@torch.no_grad()
def test_other_sizes_and_guidance(pair: Any, inputs: Any) -> None:
    """Any F, H, W: the shorter edge gets the side; guidance combines the two halves of the batch."""
    _, fast = pair(extras=2)
    fast.eval().extend_time = fast.extend_space = "sincos"
    x, t, y = torch.randn(2, 5, 4, 8, 12), torch.tensor([3, 900]), torch.tensor([1, 5])
    out = fast(x, t, y, 2)
    assert out.shape == (2, 5, 8, 8, 12) and not torch.equal(out, fast(x, t, y, 3))
    x[1] = x[0]
    halves = fast(x, t, y, side=2)[:, :, :4].chunk(2)
    guided = fast.forward_with_cfg(x, t, y, cfg_scale=3.0, side=2)
    torch.testing.assert_close(guided[:1, :, :4], halves[1] + 3 * (halves[0] - halves[1]))


@pytest.mark.parametrize(
    ("backend", "sides"), [("eager", (2,)), pytest.param("aot_eager", (2, 3), marks=pytest.mark.slow)]
)
def test_compiles_whole(backend: str, sides: tuple[int, ...], pair: Any, inputs: Any) -> None:
    """A graph a side, without a break."""
    _, fast = pair(extras=2, depth=6, layout="PP GSRD")
    torch._dynamo.reset()
    compiled = torch.compile(fast.eval(), fullgraph=True, backend=backend)
    (x, t), kwargs = inputs(fast)
    for side in sides:
        out = compiled(x, t, **kwargs, side=side)
        out.backward(torch.randn_like(out))
        assert testing.relative_error(out.detach(), fast(x, t, **kwargs, side=side).detach()) <= 3e-6


def test_layout_is_read_from_the_weights() -> None:
    model = FlexLatte(**FLEX)
    assert kinds_of(model.state_dict()) == model.config.kinds == "PPGSSSRDGSRD"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layout": "PP GSSSRD"}, "layout must name 12 blocks, the depth, got 8 in 'PP GSSSRD'"),
        ({"layout": "GSSR GSSSRDDD"}, "layout must start with dense blocks, P or D"),
        ({"layout": "PP SSRD DDDDDD"}, r"generate sparse tokens \(G\) before a sparse block \(S\), got S at block 2"),
        ({"layout": "PP RDDDDDDDDD"}, r"generate sparse tokens \(G\) before it recovers all \(R\), got R at block 2"),
        ({"layout": "PPP GSSSSSRDD"}, "G and R on blocks over space alone, got G at block 3"),
        ({"layout": "PP GSSRDD DDDD"}, "G and R on blocks over space alone, got R at block 5"),
        ({"layout": "PP GSSDDDDDDD"}, r"recover all tokens \(R\) before a block P or D, got D at block 5"),
        ({"layout": "PP DDDDDDDDGS"}, r"recover all tokens \(R\) at its end"),
        ({"layout": "PP GSSXRDGSRD"}, "made of the letters P, G, S, R, D, got X in"),
        ({"layout": "auto", "depth": 10}, "layout must be given for depths other than 28, 24, 16, 12, got depth 10"),
        ({"sides": (2, 5)}, "sides must be at most the 4 tokens along an edge, got 5"),
        ({"sides": (3, 2)}, r"sides must grow from noise to sample, got \(3, 2\)"),
        ({"sides": (2, 2)}, r"sides must grow from noise to sample, got \(2, 2\)"),
        ({"sides": ()}, r"sides must be positive integers, got \(\)"),
        ({"sides": (2.0,)}, r"sides must be positive integers, got \(2\.0,\)"),
        ({"variant": 3}, "variant must be 0, 1 or 2, got 3"),
        ({"conditioning": "tokens"}, "conditioning must be 'adaln', got 'tokens'"),
    ],
    ids=str,
)
def test_bad_constructor(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"FlexLatte: .*{message}"):
        FlexLatte(**FLEX | keywords)


def test_bad_side(pair: Any, inputs: Any) -> None:
    _, fast = pair(extras=2)
    args, kwargs = inputs(fast)
    for side, message in ((0, r"side must be in \[1, 4\], the shorter edge, got 0"), (5, "got 5")):
        with pytest.raises(ValueError, match=message):
            fast(*args, **kwargs, side=side)
    wrong: list[Any] = [2.0, Tensor([2]), True]
    for side in wrong:
        with pytest.raises(TypeError, match="side must be a number of the host"):
            fast(*args, **kwargs, side=side)
