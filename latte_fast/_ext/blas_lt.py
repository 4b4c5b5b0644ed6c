"""A linear layer's products by cuBLASLt: its result and its two gradients, with what the library's epilogues add.

torch calls the same library, by the algorithm that its heuristics put first and with few of its epilogues. Here an
algorithm is named: `latte-fast tune` has timed those that the library proposes. Matrices of the library lie column
after column, so that y = x w^T is y^T = w x^T to it.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latte_fast import _ext

CODES = {torch.float16: 2, torch.bfloat16: 14}
# bytes that every pointer is a multiple of (kAlignment of csrc/cuda/blas_lt.h)
ALIGNMENT = 16
# the most bytes of workspace that an algorithm may ask for
WORKSPACE = 64 * 2**20
# parts that the sum of a weight's gradient may be split into: its tiles are few and its sums long
SPLITS = (2, 3, 4, 5, 6, 8)


class Way(NamedTuple):
    kind: str  # "forward" y = x w^T, "dgrad" dx = dy w, "wgrad" dw = dy^T x
    epilogue: int  # of cublasLtEpilogue_t


WAYS = {
    "forward": Way("forward", 1),
    "forward-bias": Way("forward", 4),
    # tanh-GELU(y + b)
    "forward-bias-gelu": Way("forward", 36),
    # the same, which keeps y + b in a matrix of its own
    "forward-bias-gelu-kept": Way("forward", 164),
    "dgrad": Way("dgrad", 1),
    # times the derivative of tanh-GELU at what was kept
    "dgrad-gelu": Way("dgrad", 192),
    # and its sum over rows, the gradient of the bias before the GELU
    "dgrad-gelu-bias": Way("dgrad", 208),
    "wgrad": Way("wgrad", 1),
    # and the sum of dy over rows
    "wgrad-bias": Way("wgrad", 512),
}


class Product(NamedTuple):
    """One of WAYS for x (M, K), w (N, K), dy (M, N), all contiguous."""

    way: str
    rows: int  # M
    outputs: int  # N
    inputs: int  # K
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Its name in the table: `product/wgrad-bias-M32768-N3456-K1152-bfloat16`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"product/{self.way}-M{self.rows}-N{self.outputs}-K{self.inputs}-{dtype}"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the result."""
        M, N, K = self.rows, self.outputs, self.inputs
        return {"forward": (M, N), "dgrad": (M, K), "wgrad": (N, K)}[WAYS[self.way].kind]

    @property
    def bias_size(self) -> int:
        """Length of the bias that is added, or of the gradient of a bias that comes with the result; 0 without."""
        if "bias" not in self.way:
            return 0
        return self.inputs if WAYS[self.way].kind == "dgrad" else self.outputs


class Plan:
    """A product on one device by one algorithm."""

    def __init__(self, product: Product, index: int):
        kind, epilogue = WAYS[product.way]
        M, N, K = product[1:4]
        sizes = {"forward": (N, M, K), "dgrad": (K, M, N), "wgrad": (K, N, M)}[kind]
        transposed = int(kind == "forward"), int(kind == "wgrad")
        self.product, self.index, self.workspace = product, index, 0
        self._plan = _ext.load().BlasPlan(library(index), sizes, transposed, CODES[product.dtype], epilogue)

    def search(self, count: int = 16) -> list[bytes]:
        """Returns up to `count` algorithms that the library proposes, and of a weight's gradient split ones too."""
        splits = list(SPLITS) if WAYS[self.product.way].kind == "wgrad" else []
        return list(dict.fromkeys(self._plan.search(count, WORKSPACE, splits)))

    def take(self, algorithm: bytes) -> None:
        """Makes an algorithm that of this plan; RuntimeError where the library refuses it."""
        self.workspace = self._plan.take(algorithm)

    @property
    def config(self) -> list[int]:
        """Its algorithm's id, tile, splits, reduction, swizzling, custom option, stages, inner shape and cluster."""
        return self._plan.config

    def __call__(self, left: Tensor, right: Tensor, bias: Tensor | None = None, aux: Tensor | None = None) -> Tensor:
        """Returns the product of (x, w), (dy, w) or (dy, x); writes bias and aux where they are results."""
        out = torch.empty(self.product.shape, dtype=left.dtype, device=left.device)
        space = torch.empty(self.workspace, dtype=torch.uint8, device=left.device) if self.workspace else None
        with _device_of(left):
            self._plan.run(
                right.data_ptr(),
                left.data_ptr(),
                out.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                0 if aux is None else aux.data_ptr(),
                0 if space is None else space.data_ptr(),
                _stream(self.index),
            )
        return out


def why_not(*tensors: Tensor) -> str | None:
    """Why cuBLASLt does not multiply these, which all must be contiguous and aligned, or None."""
    x = tensors[0]
    if not on_cuda(x):
        return f"cuBLASLt needs CUDA tensors, got one on {x.device.type}"
    if x.dtype not in CODES:
        return f"cuBLASLt is called for bf16 and fp16 here, got {x.dtype}"
    for t in tensors:
        if t.dtype != x.dtype or not t.is_contiguous() or t.data_ptr() % ALIGNMENT or t.shape[-1] % 8:
            return f"cuBLASLt needs contiguous tensors of one dtype whose rows begin at multiples of {ALIGNMENT} bytes"
    return why_not_loaded()


@functools.cache
def why_not_loaded() -> str | None:
    """Why there is no cuBLASLt to call, or None."""
    if _ext.why_not_built() or not hasattr(_ext.load(), "BlasLt"):
        return _ext.why_not_built() or "the extension was built before it knew cuBLASLt"
    if torch.version.cuda is None:
        return "this torch was built without CUDA, and with it without cuBLASLt"
    try:
        library(torch.cuda.current_device())
    except RuntimeError as error:
        return f"cuBLASLt can't be called: {error}"
    return None


@functools.cache
def library(index: int) -> Any:
    """Returns a handle on a device of the copy of cuBLASLt that torch has loaded."""
    major = str(torch.version.cuda).partition(".")[0]
    with torch.cuda.device(index):
        return _ext.load().BlasLt(f"libcublasLt.so.{major}", True)


def version(index: int) -> int:
    """Returns the library's version; an algorithm is one of this version alone."""
    return library(index).version


def on_cuda(x: Tensor) -> bool:
    return x.is_cuda


def _device_of(x: Tensor) -> Any:
    return torch.cuda.device_of(x)


def _stream(index: int) -> int:
    return torch._C._cuda_getCurrentRawStream(index)
