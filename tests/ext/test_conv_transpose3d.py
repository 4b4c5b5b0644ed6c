"""conv_transpose3d on the C++ backend: the criterion over a matrix of windows, both padding modes, bad inputs."""

import functools
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from latte_fast import _ext, ops, use_backend
from latte_fast.modules.conv_transpose3d import ConvTranspose3d
from latte_fast.reference.functional import conv_transpose3d_ref
from latte_fast.testing import compare
from tests.helpers.guards import poisoned_empty

pytestmark = pytest.mark.skipif(_ext.why_not_built() is not None, reason=str(_ext.why_not_built()))

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def case(seed: int, dtype: torch.dtype) -> tuple[tuple, dict]:
    """A random window with an output: (x, w, b) and the keywords."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        kernel, dilation = ([rng.randint(1, top) for _ in range(3)] for top in (5, 3))
        stride = [rng.randint(1, 3) for _ in range(3)]
        padding = [rng.randint(0, d * (k - 1) + 1) for k, d in zip(kernel, dilation, strict=True)]
        extra = [rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
        size = [rng.choice([1, 2, 3, 5, 7, 8]) for _ in range(2)] + [rng.choice([1, 3, 7, 16, 17, 33])]
        spans = zip(size, kernel, stride, padding, extra, dilation, strict=True)
        out = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, e, d in spans]
        if min(out) > 0 and out[0] * out[1] * out[2] < 30_000:
            break
    groups = rng.choice([1, 1, 2, 3])
    depth, cols = (groups * rng.choice([1, 3, 8, 17]) for _ in range(2))
    x = torch.randn(rng.choice([1, 2]), depth, *size).to(dtype)
    w = torch.randn(depth, cols // groups, *kernel).to(dtype)
    b = torch.randn(cols).to(dtype) if rng.random() < 0.7 else None
    layout = rng.choice(["plain", "plain", "channels last", "strided", "unbatched"])
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "strided":
        x = x.repeat_interleave(2, -1)[..., ::2].transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "unbatched":
        x = x[0]
    window = {"stride": tuple(stride), "padding": tuple(padding), "output_padding": tuple(extra), "groups": groups}
    mode = rng.choice(["zeros", "replicate"])
    return (x, w, b), {**window, "dilation": tuple(dilation), "pad_mode": mode}


def stacked(fn: Callable, count: int) -> Callable:
    """fn on `count` draws of its tensors, stacked."""
    return lambda *draws: torch.stack([fn(*(None if t is None else t[i] for t in draws)) for i in range(count)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("seed", range(20, 520))
def test_conv_transpose3d_product(seed, dtype):
    """As many draws of a window as give 64 biases: of a few sums, torch's own largest error is luck."""
    tensors, window = case(seed, dtype)
    count = -(-64 // (tensors[1].shape[1] * window["groups"]))

    def draws(t: torch.Tensor) -> torch.Tensor:
        # each laid out as the first is
        others = [torch.empty_like(t).copy_(torch.randn(t.shape).to(dtype)) for _ in range(count - 1)]
        return torch.stack([t, *others]) if t.is_contiguous() else _side_by_side([t, *others])

    # oneDNN's own 16-bit backward reads beyond its buffers in some of these windows
    with torch.backends.mkldnn.flags(enabled=dtype == torch.float32):
        check(tuple(t if t is None else draws(t) for t in tensors), window, count)


def _side_by_side(tensors: list[torch.Tensor]) -> torch.Tensor:
    """(n, ...) of tensors with the same strides, which each keeps."""
    first = tensors[0]
    size = 1 + sum((n - 1) * s for n, s in zip(first.shape, first.stride(), strict=True))
    out = torch.empty(len(tensors) * size, dtype=first.dtype).as_strided(
        (len(tensors), *first.shape), (size, *first.stride())
    )
    for i, t in enumerate(tensors):
        out[i].copy_(t)
    return out


def check(tensors: tuple, window: dict, count: int = 0) -> None:
    tensors = tuple(t if t is None else t.requires_grad_() for t in tensors)
    names = ["y", "dx", "dw", "db"][: 3 + (tensors[2] is not None)]
    fns = [functools.partial(fn, **window) for fn in (ops.conv_transpose3d, conv_transpose3d_ref)]
    with use_backend(conv_transpose3d="cpu"), poisoned_empty():
        compare(
            *(stacked(fn, count) if count else fn for fn in fns),
            tensors,
            names,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("seed", range(20))
def test_conv_transpose3d(seed, dtype):
    check(*case(seed, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "pad_mode"),
    [
        ((8, 8), (2, 1, 1), (2, 1, 1), 0, "zeros"),
        ((70, 33), (2, 2, 2), (2, 2, 2), 0, "zeros"),
        ((64, 48), 4, (2, 2, 2), 1, "replicate"),
        ((48, 96), 4, (1, 2, 2), 1, "zeros"),
        ((5, 130), (1, 8, 8), (1, 8, 8), 0, "zeros"),
    ],
    ids=["frames", "patches", "decoder", "decoder-space", "one-row"],
)
def test_conv_transpose3d_real_windows(channels, kernel, stride, padding, pad_mode, dtype):
    torch.manual_seed(0)
    kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
    x, w = torch.randn(2, channels[0], 3, 7, 16).to(dtype), torch.randn(*channels, *kernel).to(dtype)
    check((x, w, torch.randn(channels[1]).to(dtype)), {"stride": stride, "padding": padding, "pad_mode": pad_mode})


def edges(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """x extended along its last three axes, one explicit copy of the edge at a time."""
    for axis in (-3, -2, -1):
        n = x.shape[axis]
        x = torch.cat([x.narrow(axis, 0, 1)] * before + [x] + [x.narrow(axis, n - 1, 1)] * after, dim=axis)
    return x


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_conv_transpose3d_replicate_is_padding_then_the_plain_operator(backend):
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 3, 3, 4, 5).double(), torch.randn(3, 4, 4, 4, 4).double(), torch.randn(4).double()
    with use_backend(conv_transpose3d=backend):
        for stride, padding, extra, dilation in [(2, 1, 0, 1), (2, 0, 1, 1), (3, 4, 2, 2), (1, 0, 0, 1), (1, 2, 1, 3)]:
            got = ops.conv_transpose3d(x, w, b, stride, padding, extra, dilation=dilation, pad_mode="replicate")
            wide = 12  # any extension that reaches far enough gives the same
            plain = F.conv_transpose3d(edges(x, wide, wide), w, b, stride, padding + wide * stride, extra, 1, dilation)
            torch.testing.assert_close(got, plain, rtol=0, atol=1e-12)
        # a 3D-VQGAN decoder: pad by kernel - stride, the larger half in front, then padding kernel - 1
        for stride, before, after in [(2, 1, 1), (1, 2, 1)]:
            want = F.conv_transpose3d(edges(x, before, after), w, b, stride, 3)
            got = ops.conv_transpose3d(x, w, b, stride, 3 - before * stride, pad_mode="replicate")
            t, h, width = (n * stride for n in x.shape[2:])
            assert want.shape[2:] == (t, h, width)
            torch.testing.assert_close(got[:, :, :t, :h, :width], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pad_mode", ["zeros", "replicate"])
def test_conv_transpose3d_gradcheck(pad_mode):
    torch.manual_seed(0)
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((1, 4, 2, 2, 3), (4, 2, 3, 2, 3), 4))
    fn = functools.partial(
        ops.conv_transpose3d, stride=(1, 2, 2), padding=1, output_padding=(0, 1, 0), groups=2, pad_mode=pad_mode
    )
    with use_backend(conv_transpose3d="cpu"):
        assert torch.autograd.gradcheck(fn, (x, w, b))


def test_conv_transpose3d_second_derivative_is_refused():
    x, w = torch.randn(1, 2, 2, 3, 3, requires_grad=True), torch.randn(2, 2, 2, 2, 2, requires_grad=True)
    with use_backend(conv_transpose3d="cpu"):
        (dx,) = torch.autograd.grad(ops.conv_transpose3d(x, w).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="conv_transpose3d: no second derivative"):
            dx.sum().backward()


@pytest.mark.parametrize("pad_mode", ["zeros", "replicate"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_conv_transpose3d_opcheck(memory_format, pad_mode):
    x = torch.randn(2, 3, 2, 3, 4).contiguous(memory_format=memory_format).requires_grad_()
    w, b = torch.randn(3, 2, 3, 3, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    args = (x, w, b, [4, 6, 8], [2, 2, 2], [1, 1, 1], [1, 1, 1], 1, pad_mode == "replicate", "cpu")
    torch.library.opcheck(torch.ops.latte_fast.conv_transpose3d.default, args)


def test_conv_transpose3d_compiles_without_a_break():
    x, w = torch.randn(1, 3, 2, 3, 4), torch.randn(3, 2, 2, 2, 2)
    with use_backend(conv_transpose3d="cpu"):
        jit = torch.compile(lambda x, w: ops.conv_transpose3d(x, w, stride=2), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(jit(x, w), F.conv_transpose3d(x, w, stride=2))


def test_conv_transpose3d_flops_are_torchs():
    x, w = torch.randn(2, 4, 2, 3, 4, requires_grad=True), torch.randn(4, 3, 2, 2, 2, requires_grad=True)
    counts = []
    for fn in (ops.conv_transpose3d, F.conv_transpose3d):
        with FlopCounterMode(display=False) as counter:
            fn(x, w, None, 2).square().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_conv_transpose3d_autocast_and_empty_batch():
    x, w, b = torch.randn(2, 3, 2, 3, 4), torch.randn(3, 2, 2, 2, 2), torch.randn(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.conv_transpose3d(x, w, b).dtype == torch.bfloat16
    leaves = [t.requires_grad_() for t in (x[:0].detach(), w, b)]
    out = ops.conv_transpose3d(*leaves)
    assert out.shape == (0, 2, 3, 4, 5)
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), leaves))


def test_conv_transpose3d_keeps_infinities_to_their_own_outputs():
    x, w = torch.randn(1, 8, 2, 5, 9), torch.randn(8, 8, 3, 3, 3)
    x[0, 3, 1, 2, 4] = float("inf")
    for dtype in DTYPES:
        args = (x.to(dtype), w.to(dtype), None, 2, 1)
        assert torch.equal(ops.conv_transpose3d(*args).isfinite(), F.conv_transpose3d(*args).isfinite())


def test_module_has_torchs_parameters():
    torch.manual_seed(0)
    ours = ConvTranspose3d(8, 6, 3, 2, 1, groups=2, pad_mode="replicate")
    theirs = torch.nn.ConvTranspose3d(8, 6, 3, 2, 1, groups=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 2, 3, 4)
    assert "replicate" in repr(ours)
    want = conv_transpose3d_ref(x, ours.weight, ours.bias, 2, 1, (1, 0, 1), 2, 1, "replicate")
    torch.testing.assert_close(ours(x, output_size=[4, 5, 8]), want)
    ours.pad_mode = "zeros"
    torch.testing.assert_close(ours(x, output_size=[4, 5, 8]), theirs(x, output_size=[4, 5, 8]))
    with pytest.raises(ValueError, match="pad_mode"):
        ConvTranspose3d(8, 6, 3, pad_mode="reflect")


X, W = torch.randn(2, 4, 3, 3, 3), torch.randn(4, 6, 2, 2, 2)


@pytest.mark.parametrize(
    ("argument", "args"),
    [
        ("x", (X[0, 0], W)),
        ("x", (1, W)),
        ("x", (X.int(), W.int())),
        ("x", (X[:, :3], W)),
        ("x", (X[:, :, :0], W)),
        ("w", (X, W[0])),
        ("w", (X, W.double())),
        ("w", (X, W[:, :, :0])),
        ("w", (X, W, None, 1, 0, 0, 3)),
        ("b", (X, W, torch.randn(5))),
        ("b", (X, W, torch.randn(6, 1))),
        ("b", (X, W, torch.randn(6).double())),
        ("stride", (X, W, None, 0)),
        ("stride", (X, W, None, 1.5)),
        ("stride", (X, W, None, (1, 2))),
        ("stride", (X, W, None, True)),
        ("padding", (X, W, None, 1, -1)),
        ("padding", (X, W, None, 1, 5)),
        ("output_padding", (X, W, None, 2, 0, 2)),
        ("output_padding", (X, W, None, 2, 0, (0, 2, 0))),
        ("padding", (X, W, None, 1, (0, 0, 5))),
        ("output_padding", (X, W, None, 2, 0, -1)),
        ("groups", (X, W, None, 1, 0, 0, 0)),
        ("groups", (X, W, None, 1, 0, 0, "a")),
        ("dilation", (X, W, None, 1, 0, 0, 1, 0)),
    ],
)
def test_conv_transpose3d_refuses_what_torch_refuses(argument, args):
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        F.conv_transpose3d(*args)
    kind = TypeError if theirs.type is TypeError else RuntimeError
    with pytest.raises(kind, match=rf"^conv_transpose3d: {argument} must be .*got|^conv_transpose3d: {argument} must"):
        ops.conv_transpose3d(*args)


def test_conv_transpose3d_refuses_an_unknown_pad_mode():
    with pytest.raises(ValueError, match="pad_mode must be 'zeros' or 'replicate', got 'circular'"):
        ops.conv_transpose3d(X, W, pad_mode="circular")
