"""Compares the fast model with the oracle: time of a forward and a training step, memory, error."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latte_fast import reference, testing
from latte_fast.models.latte.model import Latte_models


@dataclass(frozen=True)
class Comparison:
    """Measurements of "oracle" and "fast": seconds of a forward and a step, bytes saved for backward, error."""

    forward: dict[str, float]
    step: dict[str, float]
    kept: dict[str, int]
    error: dict[str, float]

    @property
    def slow(self) -> list[str]:
        """One sentence for each timing in which the fast model is no faster than the oracle."""
        taken = {"forward": self.forward, "step": self.step}
        times = {name: seconds["fast"] / seconds["oracle"] for name, seconds in taken.items()}
        return [f"the fast model's {name} takes {n:.2f}x the oracle's time" for name, n in times.items() if n >= 1]

    @property
    def wrong(self) -> str | None:
        """Why the table must not be reported: the fast model's error is above the criterion. None where it is not."""
        if not self.error["fast"] <= max(2 * self.error["oracle"], 3e-6):
            return f"the fast model's error {self.error['fast']:.2e} is above twice the oracle's in the same dtype"
        return None


def compare(model: str, dtype: torch.dtype, repeats: int, device: torch.device) -> Comparison:
    """Times both models on one 16x256x256 clip, the fastest of `repeats` runs; errors are against the fp32 oracle."""
    torch.manual_seed(0)
    exact = testing.refill(reference.latte.Latte_models[model]()).to(device).eval()
    x = torch.randn(1, 16, 4, 32, 32, device=device)
    t = torch.tensor([500], device=device)
    # the oracle embeds patches by a convolution, which cuDNN would compute in TF32
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        truth = exact(x, t)
    fast = Latte_models[model]()
    fast.load_state_dict(exact.state_dict())
    nets: dict[str, nn.Module] = {"oracle": exact.to(dtype), "fast": fast.to(device, dtype).eval()}
    x = x.to(dtype)

    def forward(net: nn.Module) -> Tensor:
        with torch.no_grad():
            return net(x, t)

    def step(net: nn.Module) -> None:
        net(x, t).float().square().mean().backward()
        net.zero_grad(set_to_none=True)

    timed = {}
    for run in (forward, step):
        times: dict[str, list[float]] = {name: [] for name in nets}
        for i in range(repeats + 1):  # the first is warm-up
            for name, net in nets.items():
                took = seconds(lambda run=run, net=net: run(net))  # type: ignore[misc]
                times[name] += [took] if i else []
        # the minimum, as other programs on the machine can only add time
        timed[run.__name__] = {name: min(took) for name, took in times.items()}
    errors = {name: testing.relative_error(forward(net), truth) for name, net in nets.items()}
    kept = {name: bytes_kept(net, x, t) for name, net in nets.items()}
    return Comparison(timed["forward"], timed["step"], kept, errors)


def table(result: Comparison) -> str:
    """Formats a comparison as lines of text."""
    lines = [f"  {'':8} {'forward':>10} {'step':>10} {'kept for backward':>18} {'max error':>10}"]
    for name in result.forward:
        times = f"{result.forward[name] * 1e3:7.1f} ms {result.step[name] * 1e3:7.1f} ms"
        lines.append(f"  {name:8} {times} {result.kept[name] / 1e6:15.0f} MB {result.error[name]:10.2e}")
    forward, step = (way["oracle"] / way["fast"] for way in (result.forward, result.step))
    share = result.kept["fast"] / result.kept["oracle"]
    lines.append(f"  fast is {forward:.2f}x the oracle's speed forward, {step:.2f}x in a step, and keeps {share:.2f}x")
    return "\n".join(lines)


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def bytes_kept(model: nn.Module, *args: torch.Tensor) -> int:
    """Returns the bytes that a forward saves for its backward: no parameters, each storage counted once."""
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
