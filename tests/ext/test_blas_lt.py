"""Products by cuBLASLt: what is asked of the library, by a stub that records and multiplies on the CPU.

The stub has the manual's constants and meanings written down a second time, so that a wrong number, a transposed matrix
or an epilogue on the wrong side is refused or shows in the result.
"""

from collections.abc import Iterator

import pytest
import torch

from latte_fast import _ext
from latte_fast._ext import blas_lt
from latte_fast._ext.blas_lt import WAYS, Plan, Product
from latte_fast.cli.tune_products import Found, by_plan, by_torch, entry, fastest, operands, products
from latte_fast.testing import assert_no_worse_than_torch
from tests.helpers.blas_stub import STREAM, Stub, build, install
from tests.helpers.guards import poisoned_empty

HOST = torch.device("cpu", 0)
# rows, outputs, inputs: none like another; rows may be any number, the others are multiples of 8
SIZES = [(37, 24, 40), (1, 8, 16)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return build(tmp_path_factory.mktemp("blas_lt"))


@pytest.fixture
def stub(built: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    install(built, monkeypatch)
    yield built
    built.clear()


@pytest.mark.parametrize("dtype", list(blas_lt.CODES), ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_product_against_float64(way: str, sizes: tuple, dtype: torch.dtype, stub: Stub) -> None:
    torch.manual_seed(0)
    product = Product(way, *sizes, dtype)
    given = operands(product, HOST)
    exact = by_torch(product, type(given)(*(x if x is None else x.double() for x in given)))
    same = by_torch(product, given)
    if way == "forward-bias-gelu-kept":
        assert given.bias is not None
        exact, same = (exact[0], exact[1] + given.bias.double()), (same[0], same[1] + given.bias)
    plan = Plan(product, 0)
    algorithms = plan.search()
    assert len(algorithms) == (5 if way.startswith("wgrad") else 2)  # 2, 3 and 4 of the splits; one was refused
    for algorithm in algorithms:
        plan.take(algorithm)
        with poisoned_empty():
            results = by_plan(plan, given)
        assert results[0].shape == product.shape and len(results) == len(exact)
        for i, (got, torchs, want) in enumerate(zip(results, same, exact, strict=True)):
            assert_no_worse_than_torch(f"{way} result {i}", got, torchs, want)


def test_what_the_library_is_asked(stub: Stub) -> None:
    """y^T (N, M) = w x^T to a library whose matrices lie column after column; each gradient likewise."""
    M, N, K = 37, 24, 40
    asked = {
        "forward-bias": [N, M, K, 1, 0, 4, 14, K, K, N],
        "forward-bias-gelu-kept": [N, M, K, 1, 0, 164, 14, K, K, N],
        "forward": [N, M, K, 1, 0, 1, 14, K, K, N],
        "dgrad-gelu-bias": [K, M, N, 0, 0, 208, 14, K, N, K],
        "wgrad-bias": [K, N, M, 0, 1, 512, 14, K, N, K],
    }
    for way, line in asked.items():
        product = Product(way, M, N, K, torch.bfloat16)
        plan, given = Plan(product, 0), operands(product, HOST)
        algorithm = plan.search()[-1]
        # partial sums in fp32, pointers of 16 bytes, and none that the epilogue has no use for
        bias, aux = 16 * ("bias" in way), 16 * ("gelu" in way)
        assert stub.lines()[-1] == f"search {64 * 2**20} reductions 2 16 16 16 16 bias {bias} aux {aux}"
        plan.take(algorithm)
        splits = 4 if way == "wgrad-bias" else 1
        workspace = 256 + (splits * 4 * N * K if splits > 1 else 0)
        assert plan.workspace == workspace and plan.config[:4] == [9, 20, splits, 2 if splits > 1 else 0]
        by_plan(plan, given)
        assert stub.products()[-1] == [*line, 9, splits, workspace, STREAM]


def test_errors_name_the_function_and_leave_nothing_behind(stub: Stub) -> None:
    product = Product("forward", 8, 8, 8, torch.bfloat16)
    given = operands(product, HOST)
    before = stub.alive()
    plan = Plan(product, 0)
    with pytest.raises(RuntimeError, match="needs an algorithm first"):
        by_plan(plan, given)
    with pytest.raises(RuntimeError, match="64 bytes"):
        plan.take(b"short")
    with pytest.raises(RuntimeError, match="cublasLtMatmulAlgoCheck: status 7"):
        plan.take(bytes(64))
    plan.take(plan.search()[0])
    stub.fail("cublasLtMatmul")
    with pytest.raises(RuntimeError, match="cublasLtMatmul: status 7"):
        by_plan(plan, given)
    stub.fail("cublasLtMatmulAlgoGetHeuristic")
    with pytest.raises(RuntimeError, match="cublasLtMatmulAlgoGetHeuristic: status 7"):
        plan.search()
    del plan
    assert stub.alive() == before
    stub.fail("cublasLtMatrixLayoutCreate")
    with pytest.raises(RuntimeError, match="cublasLtMatrixLayoutCreate: status 7"):
        Plan(product, 0)
    assert stub.alive() == before
    with pytest.raises(RuntimeError, match="cublasLtGetVersion was not found"):
        _ext.load().BlasLt("libm.so.6", False)


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(8, 8, dtype=torch.bfloat16)
    assert "needs CUDA tensors" in (blas_lt.why_not(x) or "")
    if torch.version.cuda is None:
        assert "without CUDA" in (blas_lt.why_not_loaded() or "")
    monkeypatch.setattr(blas_lt, "on_cuda", lambda x: True)
    monkeypatch.setattr(blas_lt, "why_not_loaded", lambda: None)
    assert blas_lt.why_not(x, x) is None
    assert "bf16 and fp16" in (blas_lt.why_not(x.float()) or "")
    # a transposed view, a row that begins between two steps of 16 bytes, rows of 12 values, another dtype
    wide = torch.zeros(65, dtype=torch.bfloat16)
    for other in (x.t(), wide[1:].view(8, 8), torch.zeros(8, 12).bfloat16(), x.half()):
        assert "contiguous tensors of one dtype" in (blas_lt.why_not(x, other) or "")


def test_tune_keeps_what_wins_by_two_per_cent(stub: Stub) -> None:
    """A timer that gives each algorithm its own time finds the one of them that is best."""
    product = Product("wgrad", 37, 24, 40, torch.bfloat16)

    def timer(run: object, repetitions: int) -> float:
        stub.clear()
        run()  # type: ignore[operator]
        lines = stub.products()
        return {1: 3.0, 2: 2.0, 3: 0.9, 4: 1.5}[lines[0][11]] if lines else 1.0

    found = fastest(product, HOST, timer)
    assert (found.torch, found.best, found.proposed, found.config[2]) == (1.0, 0.9, 5, 3)
    kept = entry(found, HOST)
    assert kept == {"backend": "cublaslt", "algorithm": found.algorithm.hex(), "version": 130100}
    plan = Plan(product, 0)
    plan.take(bytes.fromhex(kept["algorithm"]))
    assert plan.config[2] == 3
    assert entry(Found(1.0, 0.985, found.algorithm, [], 5), HOST) == {"backend": "torch"}
    assert entry(Found(1.0, float("inf"), b"", [], 0), HOST) == {"backend": "torch"}


def test_products_of_a_model() -> None:
    named = {(layer, p.way): p for layer, p in products(1152, 4096, torch.bfloat16)}
    assert named["qkv", "wgrad-bias"].key == "product/wgrad-bias-M4096-N3456-K1152-bfloat16"
    assert named["fc2", "dgrad-gelu-bias"].shape == (4096, 4608)
    assert named["fc2", "dgrad-gelu-bias"].bias_size == 4608
    assert named["fc1", "forward-bias-gelu-kept"].bias_size == 4608 and named["proj", "wgrad"].bias_size == 0
