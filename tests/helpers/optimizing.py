"""Lists of weights as an optimizer's step takes them, torch's three passes over them, and how far a step is from it."""

from typing import Any

import torch
from torch import Tensor

# a matrix, one whose values are no multiple of a vector, a bias, one value, and one that is empty
SHAPES = ((64, 40), (3, 7, 5), (33,), (1,), (0, 4))
FACTORS = {"lr": 3e-3, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1, "decay": 0.95}


def lists(copy: torch.dtype | None, averages: bool = True, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Weights, some of them zero and with moments that are, beside gradients of very different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = [normal(s) for s in SHAPES]
    for w in weights:
        w.view(-1)[::3] = 0
    grads = [normal(s) * 10.0 ** (3 * normal(s)).clamp(-8, 8) for s in SHAPES]
    moments = [normal(s) for s in SHAPES]
    squares = [normal(s).square() for s in SHAPES]
    moments[1].zero_(), squares[1].zero_()
    found = {
        "weights": weights,
        "grads": grads,
        "moments": moments,
        "squares": squares,
        "steps": [torch.tensor(float(n)) for n in (7, 1, 7, 100_000, 7)],
        "averages": [normal(s) for s in SHAPES] if averages else [],
        "copies": [] if copy is None else [w.to(copy) for w in weights],
    }
    return {name: [t.to(device) for t in some] for name, some in found.items()}


def copied(given: dict[str, Any]) -> dict[str, Any]:
    return {name: [t.clone() for t in some] for name, some in given.items()}


def three_passes(given: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
                 decay: float) -> dict[str, Any]:  # fmt: skip
    """torch.optim.AdamW, then lerp_, then copy_, on copies; the step that is given is the one that is taken."""
    after = copied(given)
    leaves = [w.requires_grad_() for w in after["weights"]]
    settings: dict[str, Any] = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay}
    optimizer = torch.optim.AdamW(leaves, **settings, fused=True)
    for i, p in enumerate(leaves):
        p.grad = after["grads"][i]
        names = {"exp_avg": "moments", "exp_avg_sq": "squares"}
        optimizer.state[p] = {k: after[name][i] for k, name in names.items()} | {"step": after["steps"][i] - 1}
    optimizer.step()
    with torch.no_grad():
        for average, w in zip(after["averages"], leaves, strict=False):
            average.lerp_(w, 1 - decay)
        for copy, w in zip(after["copies"], leaves, strict=False):
            copy.copy_(w)
    after["weights"] = [w.detach() for w in leaves]
    return after


def rounded_once(given: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
                 decay: float) -> dict[str, Any]:  # fmt: skip
    """The three passes with moments, decay and bias corrections taken in fp64 and rounded once."""
    after = copied(given)
    for i, (w, g) in enumerate(zip(after["weights"], given["grads"], strict=True)):
        m, v, n = after["moments"][i], after["squares"][i], given["steps"][i].double()
        m.copy_(beta1 * m.double() + (1 - beta1) * g.double())
        v.copy_(beta2 * v.double() + (1 - beta2) * g.double().square())
        rate, root = (lr / (1 - beta1**n)).float(), (1 - beta2**n).sqrt().float()
        w.copy_((w.double() * (1 - lr * weight_decay)).float() - rate * m / (v.sqrt() / root + eps))
        if after["averages"]:
            after["averages"][i].lerp_(w, 1 - decay)
        if after["copies"]:
            after["copies"][i].copy_(w)
    return after


def ulps(got: Tensor, want: Tensor, *sizes: Tensor) -> float:
    """The largest error, in spacings of fp32 at the largest of a value after the step and these sizes."""
    if not want.numel():
        return 0.0
    size = torch.stack([x.abs().double() for x in (want, *sizes)]).amax(0).clamp(min=torch.finfo(torch.float32).tiny)
    spacing = 2.0 ** torch.floor(torch.log2(size)) * torch.finfo(torch.float32).eps
    return ((got.double() - want.double()).abs() / spacing).max().item()


def check_step(step: Any, given: dict[str, Any], passes: Any = three_passes, **factors: float) -> None:
    """A step is within two ulp of three passes, and its copies are its weights rounded to nearest."""
    want, got = passes(given, **factors), copied(given)
    step(**got, **factors)
    for name in ("weights", "moments", "squares", "averages"):
        for i, (a, b, before) in enumerate(zip(got[name], want[name], given[name], strict=True)):
            sizes = [before, want["weights"][i]] if name == "averages" else [before]
            assert not a.isnan().any() and ulps(a, b, *sizes) <= 2, f"{name} {i}: {ulps(a, b, *sizes)} ulp"
            assert not a.numel() or not torch.equal(a, before), f"{name} {i} did not move"
    for name in ("grads", "steps"):
        assert all(torch.equal(a, b) for a, b in zip(got[name], given[name], strict=True)), name
    for copy, w in zip(got["copies"], got["weights"], strict=False):
        assert torch.equal(copy, w.to(copy.dtype))
