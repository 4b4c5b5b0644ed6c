"""One network in training: its weights, their EMA, its optimizer, and how it is spread over ranks."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latte_fast.distributed.data_parallel import gather_anew, reducing, spread
from latte_fast.distributed.ranks import Ranks
from latte_fast.optimizers.adamw_ema import AdamWEma
from latte_fast.optimizers.ema import Ema
from latte_fast.runs.checkpoint import optimizer_state
from latte_fast.runs.config import OptimConfig
from latte_fast.training.weights import Weights, clip, gradients, norm_of


class Learner:
    """A network that one optimizer updates.

    Args:
        model: network on its device, compiled or converted to fp8 where it trains so.
        optim: settings of AdamW and the EMA.
        parallel: none, ddp or fsdp.
        ranks: processes that the network is spread over.
        precision: fp32; bf16, autocast on fp32 weights; bf16-weights, with an fp32 master.
        decayed: names of the weights that decay; by default all.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        parallel: str,
        ranks: Ranks,
        precision: str,
        decayed: Collection[str] | None = None,
    ):
        self.model = model.train()
        self.optim, self.parallel, self.ranks, self.precision = optim, parallel, ranks, precision
        self.sharded = parallel == "fsdp"
        if self.sharded:
            self.call = spread(model, parallel, ranks, precision)
        self.weights = Weights(model, master=precision == "bf16-weights" and not self.sharded)
        if not self.sharded:
            self.call = spread(model, parallel, ranks)
        self.ema = Ema(self.weights.by_name, optim.ema, optim.ema_warmup)
        self.optimizer = AdamWEma(
            groups_of(self.weights.trained, decayed),
            self.ema.by_weight(),
            self.weights.copies(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        ranks.closers.append(self.release)

    def release(self) -> None:
        """Drops the network and all that is made from it; the learner is of no use afterwards."""
        for name in ("model", "call", "weights", "optimizer", "ema"):
            self.__dict__.pop(name, None)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def reducing(self, last: bool) -> AbstractContextManager:
        """Wraps a backward; gradients are reduced over ranks only in that of the last micro-batch."""
        return reducing(self.call, last)

    def update(self, step: int, lr: float, wants_norm: bool) -> Tensor | None:
        """Updates the weights from their gradients; returns the gradient norm if `wants_norm` or clipping needs it."""
        grads = gradients(self.weights.trained.values())
        norm = None
        if self.optim.clip is not None or wants_norm:
            norm = norm_of(grads, self.ranks, self.sharded)
        if self.optim.clip is not None and norm is not None:
            clip(grads, norm, self.optim.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.decay = self.ema.decay_at(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the EMA weights into the model, in eval mode, within the context."""
        self.model.eval()
        with self.ema.in_place_of(self.weights.own):
            yield
        gather_anew(self.model)
        self.model.train()

    def state(self) -> dict[str, Any]:
        """Returns every tensor needed to resume; they are loaded in place, then `loaded` is called."""
        moments = optimizer_state(self.optimizer, self.weights.trained)
        return {"model": self.weights.by_name, "ema": self.ema.average, "optimizer": moments}

    def loaded(self) -> None:
        self.weights.update_model()


def groups_of(weights: Mapping[str, Tensor], decayed: Collection[str] | None) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: the weights that decay, and those that never do."""
    if decayed is None:
        return [{"params": list(weights.values())}]
    kept = [p for name, p in weights.items() if name not in decayed]
    groups: list[dict[str, Any]] = [{"params": [p for name, p in weights.items() if name in decayed]}]
    return [*groups, {"params": kept, "weight_decay": 0.0}]
