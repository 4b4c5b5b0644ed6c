"""latte-fast demo: the doctor's report, then the oracle and the fast model side by side."""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from latte_fast import info, reference, testing
from latte_fast.config import PRESETS
from latte_fast.models.latte import Latte_models


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def bytes_kept(model: nn.Module, *args: torch.Tensor) -> int:
    """Bytes a forward keeps for its backward, parameters not counted, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model(*args)
    total = sum(kept.values())
    del out
    return total


def demo(
    model: str = "Latte-S/2",
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16",
    repeats: int = 5,
) -> None:
    """Print the doctor's report, then run the oracle (upstream's code path) and the fast model on the same clip.

    Args:
        model: a preset, Latte-{S,B,L,XL}/{2,4,8}.
        dtype: of weights and activations.
        repeats: interleaved timed forwards of each; the median is shown.
    """
    if model not in PRESETS:
        raise SystemExit(f"demo: model must be one of {', '.join(PRESETS)}, got {model}")
    if repeats < 1:
        raise SystemExit(f"demo: repeats must be at least 1, got {repeats}")
    print(info.report(), "\n")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    exact = testing.refill(reference.latte.Latte_models[model]()).to(device).eval()
    x = torch.randn(1, 16, 4, 32, 32, device=device)
    t = torch.tensor([500], device=device)
    with torch.no_grad():
        truth = exact(x, t)
    fast = Latte_models[model]()
    fast.load_state_dict(exact.state_dict())
    contenders: dict[str, nn.Module] = {"oracle": exact.to(kind), "fast": fast.to(device, kind).eval()}
    x = x.to(kind)
    with torch.no_grad():
        for net in contenders.values():
            net(x, t)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, net in contenders.items():
                times[name].append(seconds(lambda net=net: net(x, t)))  # type: ignore[misc]
        errors = {name: testing.relative_error(net(x, t), truth) for name, net in contenders.items()}
    kept = {name: bytes_kept(net, x, t) for name, net in contenders.items()}
    print(f"{model}, one clip 16x256x256, {dtype} on {device}; error against the oracle in fp32")
    print(f"  {'':8} {'forward':>10} {'kept for backward':>18} {'max error':>10}")
    for name in contenders:
        ms = statistics.median(times[name]) * 1e3
        print(f"  {name:8} {ms:7.1f} ms {kept[name] / 1e6:15.0f} MB {errors[name]:10.2e}")
    ratio = statistics.median(times["oracle"]) / statistics.median(times["fast"])
    print(f"  fast is {ratio:.2f}x the oracle's speed and keeps {kept['fast'] / kept['oracle']:.2f}x its memory")
