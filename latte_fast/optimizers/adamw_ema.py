"""torch.optim.AdamW that updates averages and 16-bit copies of its weights in the same pass over them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from latte_fast.distributed.data_parallel import local
from latte_fast.ops.adamw_ema import adamw_ema_checked, is_dense

_PLAIN = (Tensor, torch.nn.Parameter)
_UNKNOWN = ("amsgrad", "maximize", "capturable", "differentiable")
# without the hooks that torch puts around a step: they are around ours already
_TORCH_STEP = inspect.unwrap(torch.optim.AdamW.step)


class AdamWEma(torch.optim.AdamW):
    """AdamW, after whose step average = decay * average + (1 - decay) * weight, and copy = weight.

    Its state dict is that of torch.optim.AdamW, either way. Where `why_not` has a reason, torch's three passes run.

    Args:
        params: weights or groups of them, as torch.optim.AdamW takes them.
        averages: averages of weights, of frozen ones too.
        copies: weights in 16 bits that a model runs on, by the weights that are trained in their place.
        settings: further settings of torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        averages: Mapping[Tensor, Tensor],
        copies: Mapping[Tensor, Tensor],
        **settings: Any,
    ):
        super().__init__(params, **settings)
        self.averages, self.copies = averages, copies
        self.decay = 1.0  # of the averages in the next step

    def why_not(self) -> str | None:
        """Returns why the next step is torch's three passes, or None where it is one."""
        for group in self.param_groups:
            unknown = [name for name in _UNKNOWN if group.get(name)]
            if unknown or isinstance(group["lr"], Tensor):
                return f"it does not know {', '.join(unknown) or 'a learning rate that is a tensor'}"
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            return "a GradScaler has scaled the gradients"
        for p in self._given():
            state, grad = self.state[p], p.grad
            kept = [t for t in (state.get("exp_avg"), state.get("exp_avg_sq"), self.averages.get(p)) if t is not None]
            copy = self.copies.get(p)
            beside = kept if copy is None else [*kept, copy]
            for t in (p, grad, *beside):
                if type(t) not in _PLAIN or t.layout != torch.strided:
                    return "a weight is sharded, or of another class than torch's dense tensor"
            for t in (p, grad, *kept):
                if t.dtype != torch.float32:
                    return "a weight, its gradient or what is kept of it is not in fp32"
            stride = p.stride()
            for t in beside:
                if t.stride() != stride or t.device != p.device:
                    return "what is kept of a weight has other strides, or is on another device"
            if not is_dense(p):
                return "a weight has gaps"
            if "step" in state and state["step"].device != p.device:
                return "the number of steps is kept on another device than the weight"
        return None

    def _given(self) -> list[Any]:
        """The weights that have a gradient."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given, done = self._given(), set()
        if self.why_not() is None:
            for group in self.param_groups:
                self._one_pass(group)
            done = set(given)
        else:
            _TORCH_STEP(self)
        left = [(local(average), local(p.detach())) for p, average in self.averages.items() if p not in done]
        if left:
            torch._foreach_lerp_([average for average, _ in left], [p for _, p in left], 1 - self.decay)
        copied = [(self.copies[p].detach(), p.detach()) for p in given if p in self.copies and p not in done]
        if copied:
            torch._foreach_copy_([copy for copy, _ in copied], [p for _, p in copied])
        return loss

    def _one_pass(self, group: dict[str, Any]) -> None:
        """Updates a group's weights that have a gradient; in a call each for those with and without an average."""
        kinds: dict[tuple[bool, Any], list[Any]] = {}
        for p in group["params"]:
            if p.grad is not None:
                copy = self.copies.get(p)
                kinds.setdefault((p in self.averages, copy if copy is None else copy.dtype), []).append(p)
        for (averaged, copied), given in kinds.items():
            states = [self._state(p) for p in given]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            beta1, beta2 = group["betas"]
            lists = (
                given,
                [in_order(p.grad, p) for p in given],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                steps,
                [self.averages[p] for p in given] if averaged else [],
                [self.copies[p] for p in given] if copied else [],
            )
            # why_not has looked at each of these
            adamw_ema_checked(lists, (group["lr"], beta1, beta2, group["eps"], group["weight_decay"], self.decay))

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        """Returns AdamW's state of a weight, as torch makes it for fused steps."""
        if not self.state[p]:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]


def in_order(grad: Tensor, weight: Tensor) -> Tensor:
    """Returns a gradient whose values lie in its weight's order."""
    return grad if grad.stride() == weight.stride() else torch.empty_like(weight).copy_(grad)
