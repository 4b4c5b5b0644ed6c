"""The CUDA kernels of conv_transpose3d on the host: their own source on an emulated machine, and their indices alone.

The machine (emulation/machine.h) checks every access against the tensors passed in, that nothing is stored twice, and
gives fragments, asynchronous copies and barriers the meaning that the PTX manual gives them.
"""

import fcntl
import functools
import importlib
import importlib.util
import math
import mmap
import os
import platform
import random
import shutil
import subprocess
import sysconfig
from collections.abc import Collection, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latte_fast import _ext, ops, use_backend
from latte_fast._ext import conv_transpose3d_cuda as launchers
from latte_fast._ext import platforms
from latte_fast.reference.functional import conv_transpose3d_ref
from latte_fast.testing import assert_no_worse_than_torch, largest_errors, run_with_grads, wider
from tests.ext.test_conv_transpose3d import DTYPES, NAMES, case
from tests.helpers.guards import poisoned_empty

SOURCE = Path(__file__).with_name("emulation") / "conv.cpp"


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    include, gxx = Path(sysconfig.get_path("include")), shutil.which("g++")
    if not gxx or platform.machine() != "x86_64" or not (include / "Python.h").exists():
        pytest.skip("the emulation needs g++ for x86-64 and Python's headers")
    root = tmp_path_factory.getbasetemp()
    # the workers of a test run share one build, which takes a core longer than most of what it serves
    out = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "conv_emulation.so"
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            build(gxx, include, out)
    spec = importlib.util.spec_from_file_location("conv_emulation", out)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def build(gxx: str, include: Path, out: Path) -> None:
    flags = ["-std=c++17", "-O2", "-mf16c", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall"]
    folders = [f"-I{include}", f"-I{Path(torch.__file__).parent / 'include'}"]  # torch ships pybind11's headers
    command = [gxx, *flags, "-Werror", "-Wno-unknown-pragmas", *folders, str(SOURCE), "-o", f"{out}.partial"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    os.rename(f"{out}.partial", out)


class Emulated:
    """What the launchers' tensors are to the emulated machine."""

    def __init__(self, module: ModuleType):
        self.module, self.kept = module, []

    def begin(self, lazy: bool = True, backwards: bool = False) -> None:
        self.module.begin(lazy, backwards)
        self.kept.clear()

    def at(self, x: Tensor | None) -> int:
        if x is None:
            return 0
        self.kept.append(x)  # a freed tensor's memory would come back as another one's
        storage = x.untyped_storage()
        self.module.allow(storage.data_ptr(), storage.nbytes())
        return x.data_ptr()

    def check_stored(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        assert self.module.written(storage.data_ptr(), storage.nbytes()) == x.numel() * x.element_size()


@pytest.fixture
def emulated(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    machine = Emulated(module)
    monkeypatch.setattr(launchers, "_at", machine.at)
    monkeypatch.setattr(launchers, "_place", lambda x: (-1, 0))
    monkeypatch.setattr(launchers, "_multiprocessors", lambda x: 4)
    monkeypatch.setattr(_ext, "load", lambda: module)
    machine.begin()
    return machine


@pytest.fixture
def walks(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    monkeypatch.setattr(_ext, "load", lambda: emulated.module.walks)
    monkeypatch.setattr(launchers, "is_direct", lambda *args: False)
    return emulated


def small_case(seed: int) -> tuple[tuple, dict]:
    """A random window that takes a moment: kernel 1-5, stride 1-4, dilation 1-4, sizes 1-5, up to 3 groups of 1-3."""
    rng = random.Random(seed)
    while True:
        kernel, stride, dilation, size = ([rng.randint(1, n) for _ in range(3)] for n in (5, 4, 4, 5))
        padding = [rng.randint(0, d * (k - 1) + 1) for k, d in zip(kernel, dilation, strict=True)]
        extra = [rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
        spans = zip(size, kernel, stride, padding, extra, dilation, strict=True)
        out = [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, e, d in spans]
        if min(out) > 0 and math.prod(out) < 600 and math.prod(kernel) < 30:
            break
    groups, generator = rng.choice([1, 1, 2, 3]), torch.Generator().manual_seed(seed)
    depth, cols = (groups * rng.choice([1, 2, 3]) for _ in range(2))
    x = torch.randn(rng.choice([1, 2]), depth, *size, dtype=torch.float64, generator=generator)
    w = torch.randn(depth, cols // groups, *kernel, dtype=torch.float64, generator=generator)
    window = {"stride": tuple(stride), "padding": tuple(padding), "output_padding": tuple(extra), "groups": groups}
    return (x, w, None), {**window, "dilation": tuple(dilation), "pad_mode": rng.choice(["zeros", "replicate"])}


def forward_and_gradients(machine: Emulated, args: tuple, kw: dict, dy: Tensor) -> list[Tensor]:
    x, w, b = args
    window = (kw["stride"], kw["padding"], kw["dilation"])
    replicate = kw["pad_mode"] == "replicate"
    with poisoned_empty():
        y = launchers.conv_transpose3d_fwd(x, w, b, tuple(dy.shape[2:]), window, kw["groups"], replicate)
        machine.check_stored(y)
        grads = launchers.conv_transpose3d_bwd(dy, x, w, window, kw["groups"], replicate, [True, True, b is not None])
        machine.check_stored(grads[1])
    return [y, *grads[: 2 + (b is not None)]]


def compare(machine: Emulated, args: tuple, kw: dict) -> None:
    """The criterion of latte_fast.testing.compare, on the launchers; of 16 bits only the last rounding is forgiven.

    Torch's own 16-bit error is no measure here: oneDNN's bf16 gradient of w reads memory that nobody wrote (torch 2.13
    with AMX: 10 of 40 runs gave NaN where the heap held some).
    """

    def run(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t if t is None else t.detach().to(dtype).requires_grad_() for t in args]
        out, grads = run_with_grads(functools.partial(conv_transpose3d_ref, **kw), leaves, [dy.to(dtype)])
        return [*out, *grads]

    dtype = args[0].dtype
    dy = torch.randn(conv_transpose3d_ref(*args, **kw).shape).to(dtype)
    oracle = run(wider(dtype))
    same = run(dtype) if dtype == torch.float32 else [t.to(dtype) for t in oracle]
    got = forward_and_gradients(machine, args, kw, dy)
    reordered = functools.cache(lambda: largest_errors(lambda: run(dtype), oracle))
    largest = max(t.abs().max().item() for t in oracle[1:])
    for i, row in enumerate(zip(("y", "dx", "dw", "db")[: len(got)], got, same, oracle, strict=True)):
        assert_no_worse_than_torch(
            *row,
            vanishing=8 * torch.finfo(dtype).eps * largest if i else 0.0,
            reordered=(lambda i=i: reordered()[i]) if dtype == torch.float32 else None,
        )


@pytest.mark.parametrize("block", range(10))
def test_indices_of_thousands_of_windows(walks: Emulated, block: int) -> None:
    """Forward and gradients in double by the kernels' own blocks, phases, taps and addresses."""
    for seed in range(block * 250, block * 250 + 250):
        args, kw = small_case(seed)
        walks.begin()
        leaves = [t if t is None else t.clone().requires_grad_() for t in args]
        want = conv_transpose3d_ref(*leaves, **kw)
        dy = torch.randn(want.shape, dtype=torch.float64)
        oracle = [want, *torch.autograd.grad(want, leaves[:2], dy)]
        for name, got, expected in zip(
            ("y", "dx", "dw"), forward_and_gradients(walks, args, kw, dy), oracle, strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11, msg=f"{name}, seed {seed}: {kw}")


def cells(names: Iterable[Any], both: Collection[Any]) -> list[Any]:
    """Each name with each dtype; of the two of 16 bits, which share their code, one is slow except in `both`."""
    found = []
    for i, name in enumerate(names):
        waits = () if name in both else (torch.float16 if i % 2 else torch.bfloat16,)
        for dtype in DTYPES:
            marks = [pytest.mark.slow] if dtype in waits else []
            found.append(pytest.param(name, dtype, marks=marks, id=f"{name}-{NAMES[dtype]}"))
    return found


@pytest.mark.parametrize(("seed", "dtype"), cells(range(6), ()))
def test_kernels(emulated: Emulated, seed: int, dtype: torch.dtype) -> None:
    """Copies late and early, threads forwards and backwards: a missing barrier or wait shows in one of them."""
    (x, w, b), kw = case(seed + 100, dtype)
    emulated.begin(lazy=seed % 2 == 0, backwards=seed % 3 == 0)
    compare(emulated, (x if x.dim() == 5 else x[None], w, b), kw)


WINDOWS = {
    "frames": ((8, 8), (2, 1, 1), (2, 1, 1), 0, "zeros", (2, 3, 5)),
    "patches": ((70, 33), (2, 2, 2), (2, 2, 2), 0, "zeros", (2, 2, 3)),
    "decoder": ((72, 72), (4, 4, 4), (2, 2, 2), 1, "replicate", (2, 3, 4)),
    "decoder-space": ((40, 64), (4, 4, 4), (1, 2, 2), 1, "zeros", (2, 3, 4)),
    "many-rows": ((8, 8), (1, 1, 1), (1, 1, 1), 0, "zeros", (3, 7, 11)),
}


@pytest.mark.parametrize(("name", "dtype"), cells(WINDOWS, ("decoder",)))
def test_kernels_real_windows(emulated: Emulated, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    channels, kernel, stride, padding, pad_mode, size = WINDOWS[name]
    x, w, b = torch.randn(2, channels[0], *size), torch.randn(*channels, *kernel), torch.randn(channels[1])
    x = x.contiguous(memory_format=torch.channels_last_3d) if name != "patches" else x
    kw: dict[str, Any] = {"stride": stride, "padding": (padding,) * 3, "output_padding": (0,) * 3, "groups": 1}
    compare(emulated, (x.to(dtype), w.to(dtype), b.to(dtype)), {**kw, "dilation": (1, 1, 1), "pad_mode": pad_mode})


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("padding", [(0, 0, 0), (1, 0, 1)], ids=str)
def test_direct_kernel(emulated: Emulated, padding: tuple, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 9, 3, 5, 7).to(dtype), torch.randn(9, 4, 3, 1, 2).to(dtype), torch.randn(12).to(dtype)
    kw = {"stride": (3, 1, 2), "padding": padding, "groups": 3}
    want = conv_transpose3d_ref(x.double(), w.double(), b.double(), **kw)
    args = (tuple(want.shape[2:]), (3, 1, 2), padding, (1, 2, 1))
    assert launchers.is_direct(x, w, *args, 3)
    y = launchers.conv_transpose3d_fwd(x, w, b, args[0], args[1:], 3, False)
    emulated.check_stored(y)
    assert_no_worse_than_torch("y", y, conv_transpose3d_ref(x, w, b, **kw), want)


def test_infinities_stay_with_their_outputs(emulated: Emulated) -> None:
    x, w = torch.randn(1, 8, 2, 5, 9), torch.randn(8, 8, 3, 3, 3)
    x[0, 3, 1, 2, 4] = float("inf")
    window = ((2, 2, 2), (1, 1, 1), (1, 1, 1))
    for dtype in DTYPES:
        emulated.begin()
        want = F.conv_transpose3d(x.to(dtype), w.to(dtype), None, 2, 1)
        got = launchers.conv_transpose3d_fwd(x.to(dtype), w.to(dtype), None, tuple(want.shape[2:]), window, 1, False)
        assert torch.equal(got.isfinite(), want.isfinite())


@pytest.mark.parametrize("pad_mode", ["zeros", "replicate"])
def test_op_on_the_emulated_machine(emulated: Emulated, monkeypatch: pytest.MonkeyPatch, pad_mode: str) -> None:
    """The backend as the op calls it: autograd, opcheck, channels last, and a gradient that is one expanded number."""
    monkeypatch.setitem(platforms.WHY_NOT, "cuda", lambda x: None)
    # the machine is begun anew before each launch, since opcheck frees what it made
    launch = launchers._launch
    monkeypatch.setattr(launchers, "_launch", lambda *args: (launch(*args), emulated.begin()))
    x = torch.randn(2, 3, 2, 3, 4).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    w, b = torch.randn(3, 2, 3, 3, 3, requires_grad=True), torch.randn(2, requires_grad=True)
    args = (x, w, b, [4, 6, 8], [2, 2, 2], [1, 1, 1], [1, 1, 1], 1, pad_mode == "replicate", "cuda")
    torch.library.opcheck(torch.ops.latte_fast.conv_transpose3d.default, args)
    with use_backend(conv_transpose3d="cuda"):
        y = ops.conv_transpose3d(x, w, b, 2, 1, 1, pad_mode=pad_mode)
        grads = torch.autograd.grad(y.sum(), (x, w, b))
        empty = ops.conv_transpose3d(x[:0], w, b, 2, 1, 1, pad_mode=pad_mode)
        nothing = torch.autograd.grad(empty.sum(), (x, w, b))
    want = conv_transpose3d_ref(x, w, b, 2, 1, 1, pad_mode=pad_mode)
    for got, expected in zip((y, *grads), (want, *torch.autograd.grad(want.sum(), (x, w, b))), strict=True):
        torch.testing.assert_close(got, expected)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert empty.shape == (0, 2, 4, 6, 8) and not any(g.any() for g in nothing)


def test_strides_and_dilations_whose_product_is_beyond_32_bits(walks: Emulated) -> None:
    x, w = torch.randn(1, 2, 1, 1, 2).double(), torch.randn(2, 2, 1, 1, 2).double()
    size, window = (1, 1, 99_991 + 100_003 - 199_000 + 1), ((1, 1, 99_991), (0, 0, 99_500), (1, 1, 100_003))
    y = launchers.conv_transpose3d_fwd(x, w, None, size, window, 1, False)
    torch.testing.assert_close(y, F.conv_transpose3d(x, w, None, *window[:2], 0, 1, window[2]))


def test_addresses_beyond_32_bits(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second clip of x and of the result lies 2^32 elements behind the first, in memory that is never touched."""
    apart, dtype = 2**32, torch.bfloat16
    try:
        # Linux's number where Python is older than the name
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
        spaces = [mmap.mmap(-1, 2 * apart + 2**16, flags=flags) for _ in range(2)]
    except (AttributeError, OSError, ValueError) as error:
        pytest.skip(f"no address space to reserve: {error}")
    flat = [torch.frombuffer(space, dtype=dtype) for space in spaces]
    x = flat[0].as_strided((2, 8, 2, 2, 2), (apart, 1, 32, 16, 8))
    out = flat[1].as_strided((2, 16, 4, 4, 4), (apart, 64, 16, 4, 1))
    small = torch.randn(x.shape).to(dtype)
    x.copy_(small)
    for t, length in ((x, 64), (out, 1024)):
        for clip in range(2):
            emulated.module.allow(t[clip].data_ptr(), length * 2)
    monkeypatch.setattr(launchers, "_at", lambda t: t.data_ptr() if t is x or t is out else emulated.at(t))
    monkeypatch.setattr(launchers, "empty", lambda *args: out)
    monkeypatch.setattr(launchers, "_channels_last", lambda t, g: t.permute(0, 2, 3, 4, 1).unflatten(-1, (g, -1)))
    packed, of_x = launchers._packed, (x.data_ptr(), apart, 8, 1, 32, 16, 8)
    monkeypatch.setattr(launchers, "_packed", lambda t: of_x if t.data_ptr() == x.data_ptr() else packed(t))
    w = torch.randn(8, 16, 4, 4, 4).to(dtype)
    launchers.conv_transpose3d_fwd(x, w, None, (4, 4, 4), ((2, 2, 2), (1, 1, 1), (1, 1, 1)), 1, False)
    oracle = F.conv_transpose3d(small.float(), w.float(), None, 2, 1)
    assert_no_worse_than_torch("y", out.clone(), F.conv_transpose3d(small, w, None, 2, 1), oracle)


def test_the_machine_notices(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read outside, an output stored twice, an address that is not aligned: each is an error, named."""
    x, w = torch.randn(1, 8, 2, 3, 4), torch.randn(8, 8, 2, 2, 2)
    window = ((2, 2, 2), (0, 0, 0), (1, 1, 1))
    packed, volume = launchers._packed, launchers._volume
    monkeypatch.setattr(launchers, "is_direct", lambda *args: False)

    def run(message: str) -> None:
        emulated.begin()
        with pytest.raises(RuntimeError, match=f"^conv_transpose3d: the CUDA launch failed: {message}"):
            launchers.conv_transpose3d_fwd(x, w, None, (4, 6, 8), window, 1, False)

    with monkeypatch.context() as patch:
        patch.setattr(launchers, "_packed", lambda t: (*packed(t)[:-1], 4 * packed(t)[-1]))
        run("an access outside of every tensor")
    with monkeypatch.context() as patch:
        patch.setattr(launchers, "_packed", lambda t: (*packed(t)[:-1], 1))
        run("an access that is not aligned")
    with monkeypatch.context() as patch:
        patch.setattr(launchers, "_volume", lambda t, g: (*volume(t, g)[:-1], 0))
        run("a second store to one address")
