"""Times the algorithms that cuBLASLt proposes for a model's linear layers, beside what torch does without them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latte_fast._ext.blas_lt import WAYS, Plan, Product, version
from latte_fast.ops.linear_gelu import bias_gelu
from latte_fast.ops.registration import launchers

# layer -> (outputs, inputs) in widths, and the products it is made of in inference and in training
LAYERS = {
    "qkv": (3, 1, ("forward-bias", "dgrad", "wgrad", "wgrad-bias")),
    "proj": (1, 1, ("forward", "forward-bias", "dgrad", "wgrad")),
    "fc1": (4, 1, ("forward-bias-gelu", "forward-bias-gelu-kept", "dgrad", "wgrad", "wgrad-bias")),
    "fc2": (1, 4, ("forward", "forward-bias", "dgrad", "dgrad-gelu", "dgrad-gelu-bias", "wgrad")),
}
# repetitions of the first look at every algorithm, and of the race of the best with torch
GLANCE, RACE, FINALISTS = 5, 20, 3
# what a searched algorithm must take of torch's time
GAIN = 0.98
# milliseconds of a launch, the median of so many
Timer = Callable[[Callable[[], Any], int], float]


class Operands(NamedTuple):
    left: Tensor
    right: Tensor
    bias: Tensor | None  # or where its gradient goes
    aux: Tensor | None  # the sum before the GELU: where it goes, or where it is read


class Found(NamedTuple):
    """Milliseconds by torch and by the best algorithm, which is empty where the library proposed none that ran."""

    torch: float
    best: float
    algorithm: bytes
    config: list[int]
    proposed: int


def products(width: int, rows: int, dtype: torch.dtype) -> Iterator[tuple[str, Product]]:
    """Yields (layer, product) of a model's four linear layers."""
    for layer, (outputs, inputs, ways) in LAYERS.items():
        for way in ways:
            yield layer, Product(way, rows, outputs * width, inputs * width, dtype)


def operands(product: Product, device: torch.device) -> Operands:
    """Draws what a product reads, and makes room for what it writes beside its result."""
    M, N, K = product[1:4]
    kind = WAYS[product.way].kind

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(product.dtype)

    left = normal(M, K) if kind == "forward" else normal(M, N)
    right = normal(M, K) if kind == "wgrad" else normal(N, K) / K**0.5
    bias = normal(product.bias_size) if product.bias_size else None
    aux = normal(*product.shape) if product.way.endswith("-kept") or product.way.startswith("dgrad-gelu") else None
    return Operands(left, right, bias, aux)


def by_torch(product: Product, given: Operands) -> tuple[Tensor, ...]:
    """Returns the results as they come without cuBLASLt's plans: the product, the bias's gradient or what is kept."""
    left, right, bias, aux = given
    kind = WAYS[product.way].kind
    if product.way == "forward-bias-gelu-kept":
        assert bias is not None
        u = left @ right.t()
        return bias_gelu(u, bias), u
    if product.way == "forward-bias-gelu":
        assert bias is not None
        if left.is_cuda:
            return (torch._addmm_activation(bias, left, right.t(), use_gelu=True),)
        return (torch.nn.functional.gelu(torch.addmm(bias, left, right.t()), approximate="tanh"),)
    if aux is not None:
        # the bias is in what was kept already
        backend = "triton" if left.is_cuda else "cpu"
        results = launchers("bias_gelu", backend).bias_gelu_bwd(left @ right, aux, aux.new_zeros(aux.shape[1]))
        return results if bias is not None else results[:1]
    if kind == "forward":
        return (torch.nn.functional.linear(left, right, bias),)
    if kind == "dgrad":
        return (left @ right,)
    return (left.t() @ right,) if bias is None else (left.t() @ right, left.sum(0))


def by_plan(plan: Plan, given: Operands) -> tuple[Tensor, ...]:
    """Returns the same results by a plan."""
    bias, aux = given.bias, given.aux
    kind, kept = WAYS[plan.product.way].kind, plan.product.way == "forward-bias-gelu-kept"
    bias = torch.empty_like(bias) if bias is not None and kind != "forward" else bias
    aux = torch.empty_like(aux) if aux is not None and kept else aux
    out = plan(given.left, given.right, bias, aux)
    if kept:
        assert aux is not None
        return out, aux
    return (out, bias) if bias is not None and kind != "forward" else (out,)


def fastest(product: Product, device: torch.device, timer: Timer) -> Found:
    """Races torch with the best of what cuBLASLt proposes for a product."""
    given, plan = operands(product, device), Plan(product, device.index)
    glances: dict[bytes, float] = {}
    for algorithm in plan.search():
        try:
            plan.take(algorithm)
            glances[algorithm] = timer(lambda: by_plan(plan, given), GLANCE)
        # proposed, and refused when it comes to it
        except RuntimeError:
            continue
    finals: dict[bytes, float] = {}
    for algorithm in sorted(glances, key=glances.__getitem__)[:FINALISTS]:
        plan.take(algorithm)
        finals[algorithm] = timer(lambda: by_plan(plan, given), RACE)
    usual = timer(lambda: by_torch(product, given), RACE)
    if not finals:
        return Found(usual, float("inf"), b"", [], 0)
    best = min(finals, key=finals.__getitem__)
    plan.take(best)
    return Found(usual, finals[best], best, plan.config, len(glances))


def entry(found: Found, device: torch.device) -> dict[str, Any]:
    """Returns a product's entry in the table: the algorithm where it is 2 % faster than torch, else that torch is."""
    if found.best < GAIN * found.torch:
        return {"backend": "cublaslt", "algorithm": found.algorithm.hex(), "version": version(device.index)}
    return {"backend": "torch"}


def product_choices(product: Product, device: torch.device, timer: Timer) -> dict[str, dict[str, Any]]:
    """`product/<shape>` -> its entry."""
    return {product.key: entry(fastest(product, device, timer), device)}
