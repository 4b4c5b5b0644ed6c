"""The CUDA kernels of conv_transpose3d: nvcc's and the assembler's word without a GPU, the criterion with one."""

import functools
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from latte_fast import backends, ops, use_backend
from latte_fast._ext import conv_transpose3d_cuda as launchers
from latte_fast._ext import platforms
from latte_fast.kernels import conv_libraries, library_choice
from latte_fast.kernels import tiles as gpu_tiles
from latte_fast.reference.functional import conv_transpose3d_ref
from latte_fast.testing import compare
from tests.ext.test_conv_transpose3d import DTYPES, NAMES, case
from tests.helpers.guards import poisoned_empty

tune = importlib.import_module("latte_fast.cli.tune")
op = importlib.import_module("latte_fast.ops.conv_transpose3d")  # the package's attribute is the function
SOURCE = Path(__file__).parents[2] / "csrc/cuda/conv_transpose3d.cu"
TENSOR_CORES = ("correlate_kernel", "weight_gradient_kernel")


def tool(name: str) -> str:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    if name == "cuobjdump" and (triton := pytest.importorskip("triton")):
        places.append(str(Path(triton.__file__).parent / "backends/nvidia/bin"))
    found = shutil.which(name, path=os.pathsep.join(places))
    if not found:
        pytest.skip(f"{name} was not found at CUDA_HOME, on PATH or at /usr/local/cuda")
    return found


@functools.cache
def cubin(arch: str, folder: Path) -> Path:
    out = folder / f"conv_{arch}.cubin"
    strict = ["-Werror", "all-warnings", "-Xptxas", "-warn-spills,-warn-lmem-usage"]
    code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    command = [tool("nvcc"), "-O3", "-std=c++17", *strict, code, "-cubin", str(SOURCE), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


ARCHS = ["90a", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("80", "100"))]


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_use_tensor_cores_and_no_local_memory(arch: str, folder: Path) -> None:
    built = str(cubin(arch, folder))
    dump = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    usage = dump([tool("cuobjdump"), "--dump-resource-usage", built]).stdout
    stacks = dict(re.findall(r"Function (\S+):\n\s*REG:\d+ STACK:(\d+)", usage))
    functions = dump([tool("cuobjdump"), "--dump-sass", built]).stdout.split("Function : ")[1:]
    assert len(functions) == len(stacks) == 14
    for text in functions:
        name = text.split()[0]
        assert stacks[name] == "0", name
        assert not re.search(r"\b(LDL|STL)\b", text), name
        products, fp32 = len(re.findall(r"\bHMMA\.", text)), "IfEE" in name
        assert (products > 0) == any(kernel in name for kernel in TENSOR_CORES), name
        if products:
            assert "LDGSTS" in text, f"{name}: no asynchronous copy"
            # an fp32 product is three of TF32, never one
            assert products % 3 == 0 if fp32 else "LDSM" in text, name
            assert bool(re.search(r"HMMA\.\S*TF32", text)) == fp32, name


@pytest.mark.slow
def test_ptx_for_later_gpus_builds_without_a_warning(tmp_path: Path) -> None:
    out = tmp_path / "conv.ptx"
    command = [tool("nvcc"), "-O3", "-std=c++17", "-Werror", "all-warnings", "-arch=compute_80", "-ptx"]
    done = subprocess.run([*command, str(SOURCE), "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "mma.sync.aligned.m16n8k16" in out.read_text()


def test_pixels_are_cut_into_splits() -> None:
    """Together the splits hold every pixel, none is empty, and each starts at a whole slab."""
    for pixels in [*range(1, 1200, 7), 65_536, 1_000_003]:
        for tiles in (1, 3, 64, 5000):
            splits, per_split = launchers.cut(pixels, tiles, 132)
            assert splits >= 1 and per_split % launchers.SLAB == 0
            assert (splits - 1) * per_split < pixels <= splits * per_split


def test_backends_say_why_not() -> None:
    x, w = torch.randn(1, 4, 2, 3, 3), torch.randn(4, 3, 2, 2, 2)
    for backend in ("cuda", "cudnn"):
        assert "need" in str(backends.why_not("conv_transpose3d", backend, x, w))
        with use_backend(conv_transpose3d=backend), pytest.raises(backends.BackendUnavailable, match="CUDA tensor"):
            ops.conv_transpose3d(x, w)
    assert "fp32, bf16 or fp16" in str(launchers.why_not(x.double(), w.double()))
    assert "above zero" in str(launchers.why_not(x[:, :, :0], w))
    assert "below 2**30" in str(launchers.why_not(x, w, (1, 1, 1), (2**30, 0, 0)))
    assert launchers.why_not(x, w) is None


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has one switch for TF32")
def test_tf32_is_seen_whoever_set_it() -> None:
    """By the old switch, by the new one, and by both in turn, where reading the old one raises."""
    cudnn, before = torch.backends.cudnn, torch.backends.cudnn.allow_tf32

    def rounds() -> bool:
        with FakeTensorMode():
            x, w = (torch.empty(8, 8, 2, 4, 4, device="cuda") for _ in range(2))
            return "TF32" in str(backends.why_not("conv_transpose3d", "cudnn", x, w))

    try:
        for switch, on in ((None, True), (None, False), ("tf32", True), ("ieee", False)):
            if switch is None:
                cudnn.allow_tf32 = on
            else:
                cudnn.conv.fp32_precision = switch
            assert rounds() == on
        compiled = torch.compile(lambda x: x + conv_libraries.rounds_to_tf32(), fullgraph=True, backend="eager")
        assert compiled(torch.zeros(3)).sum() == 0
    finally:
        cudnn.allow_tf32 = before


def test_cudnn_takes_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(1, 4, 2, 3, 3).bfloat16(), torch.randn(4, 3, 2, 2, 2).bfloat16()
    stride = (2, 1, 1)
    key = library_choice.convolution_key(x, w, stride)
    assert key == "conv_transpose3d/D4-C3-k2x2x2-s2x1x1-2x3x3-bfloat16"
    monkeypatch.setattr(gpu_tiles, "gpu_of", lambda device: gpu_tiles.Gpu("some gpu", 132, 9))
    stored: dict[str, dict[str, int]] = {}
    monkeypatch.setattr(gpu_tiles, "measured", lambda gpu: stored)
    faster = library_choice.cudnn_convolves_faster
    assert not faster(x, w, stride, 1) and faster(x, w, stride, 2)
    stored[key] = {"cudnn": 1}
    assert faster(x, w, stride, 1)
    stored[key] = {"cudnn": 0}
    assert not faster(x, w, stride, 2)


@pytest.mark.parametrize("dynamic", [False, True])
def test_choice_compiles_without_a_break(monkeypatch: pytest.MonkeyPatch, dynamic: bool) -> None:
    """What decides between our kernels and cuDNN's is traced, with symbols for sizes too."""
    monkeypatch.setitem(platforms.WHY_NOT, "cuda", lambda x: None)
    monkeypatch.setattr(op, "why_not_cudnn", lambda x, w: None)
    monkeypatch.setitem(backends._probes["conv_transpose3d"], "cpu", lambda *args: "not in this test")
    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    jit = torch.compile(
        lambda x, w, g: ops.conv_transpose3d(x, w, groups=g), fullgraph=True, backend=keep, dynamic=dynamic
    )
    x, w = torch.randn(0, 4, 2, 3, 3), torch.randn(4, 3, 2, 2, 2)
    jit(x, w, 1)
    assert "latte_fast.conv_transpose3d.default" in seen
    jit(x, w, 2)
    assert "conv_transpose3d of type object" in " ".join(seen)


def test_tune_stores_who_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[str] = []
    monkeypatch.setattr(backends, "why_not", lambda *args: None)
    monkeypatch.setattr(tune, "use_backend", lambda conv_transpose3d: forced.append(conv_transpose3d) or nullcontext())

    def timer(step: Callable) -> float:
        assert len(step()) == 3
        return {"cuda": 1.0, "cudnn": 2.0}[forced[-1]] * (-1 if len(forced) > 2 else 1)

    cases = [(4, 3, (2, 3, 3), (2, 2, 2), (2, 1, 1), 0), (8, 8, (1, 2, 2), (1, 1, 1), (1, 1, 1), 0)]
    choices = tune.cudnn_choices(cases, torch.bfloat16, torch.device("cpu"), timer)
    assert forced == ["cuda", "cudnn"] * 2
    assert choices == {
        "conv_transpose3d/D4-C3-k2x2x2-s2x1x1-2x3x3-bfloat16": {"cudnn": 0},
        "conv_transpose3d/D8-C8-k1x1x1-s1x1x1-1x2x2-bfloat16": {"cudnn": 1},
    }


def on_gpu(tensors: tuple) -> tuple:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    # preserve_format keeps channels last and leaves the gaps of a strided view behind
    moved = tuple(t if t is None else t.cuda() for t in tensors)
    if reason := backends.why_not("conv_transpose3d", "cuda", *moved[:2]):
        pytest.skip(reason)
    return moved


def check_on_gpu(tensors: tuple, window: dict) -> None:
    tensors = tuple(t if t is None else t.requires_grad_() for t in on_gpu(tensors))
    names = ["y", "dx", "dw", "db"][: 3 + (tensors[2] is not None)]
    fast, ref = (functools.partial(fn, **window) for fn in (ops.conv_transpose3d, conv_transpose3d_ref))
    # `flags` turns cuDNN off unless told
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with use_backend(conv_transpose3d="cuda"), poisoned_empty(), exact:
        compare(fast, ref, tensors, names)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("seed", range(20))
def test_conv_transpose3d_on_gpu(seed: int, dtype: torch.dtype) -> None:
    check_on_gpu(*case(seed, dtype))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("pad_mode", ["zeros", "replicate"])
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)], ids=str)
@pytest.mark.parametrize(("depth", "cols", "size"), [(256, 256, (4, 16, 16)), (256, 128, (8, 32, 32))], ids=str)
def test_decoder_on_gpu(depth: int, cols: int, size: tuple, stride: tuple, pad_mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(1, depth, *size), torch.randn(depth, cols, 4, 4, 4) / 64, torch.randn(cols)
    window = {"stride": stride, "padding": 1, "pad_mode": pad_mode}
    check_on_gpu((x.to(dtype), w.to(dtype), b.to(dtype)), window)


@pytest.mark.cuda
@pytest.mark.parametrize("kernel", [(2, 1, 1), (4, 4, 4)], ids=str)
def test_graph_capture_and_stream_on_gpu(kernel: tuple) -> None:
    x, w, b = on_gpu((torch.randn(2, 8, 4, 16, 16), torch.randn(8, 8, *kernel), torch.randn(8)))
    w.requires_grad_()
    window = {"stride": (2, 1, 1) if kernel[1] == 1 else 2, "padding": 0 if kernel[1] == 1 else 1}

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        y = ops.conv_transpose3d(x, w, b, **window)
        return y.detach(), torch.autograd.grad(y, w, torch.ones_like(y))[0]

    with use_backend(conv_transpose3d="cuda"):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        x.copy_(torch.randn_like(x))
        graph.replay()
        # the splits are added in one order: the same bits each time
        for replayed, eager in zip(out, step(), strict=True):
            assert torch.equal(replayed, eager)
