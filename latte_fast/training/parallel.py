"""One process or many: who this rank is, what ranks agree on, and how a model is spread over them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among `count`; alone it needs no process group."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.count > 1:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on each."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; over the CPU, so that no GPU waits."""
        if self.count == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes)
        return bool(votes.item())

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, on every rank; an error of rank 0's is raised on all."""
        if self.count == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box = [make(), None]
            except Exception as error:
                box = [None, error]
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor; a DTensor is known by its method, whose import costs a second."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole_tensor(x: Tensor) -> Tensor:
    """A tensor gathered from all ranks, which call this together."""
    x = x.detach()
    return x.full_tensor() if hasattr(x, "full_tensor") else x


@contextmanager
def start() -> Iterator[Ranks]:
    """The ranks torchrun set up, or one; the process group lives as long as the context."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if count == 1 or dist.is_initialized():
        yield Ranks(rank, count, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield Ranks(rank, count, device)
    finally:
        dist.destroy_process_group()


def spread(model: nn.Module, how: str, ranks: Ranks, precision: str = "fp32") -> nn.Module:
    """What to call in training: the model itself, its DDP, or the model sharded in place, a unit a block."""
    if how == "ddp":
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    if how == "fsdp":
        # a second of imports that one process does without
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        inner = outer = MixedPrecisionPolicy()
        if precision == "bf16-weights":
            # the shards are the fp32 master; only what is gathered is bf16
            half = torch.bfloat16
            # what a block is given is bf16 already but for rotary tables, and the next block reads its result
            inner = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
            outer = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, output_dtype=torch.float32)
        mesh = dist.init_device_mesh(ranks.device.type, (ranks.count,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=inner)
        fully_shard(model, mesh=mesh, mp_policy=outer)
        if hasattr(model, "forward_with_cfg"):
            register_fsdp_forward_method(model, "forward_with_cfg")
    return model


def gather_anew(model: nn.Module) -> None:
    """Drops what a sharded model's forward left gathered: without a backward it stays, whatever is written since."""
    reshard = getattr(model, "reshard", None)  # fully_shard gives a model this method
    if reshard is not None:
        reshard()


@contextmanager
def reducing(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients cross ranks only in the last micro-batch's backward."""
    if hasattr(model, "set_requires_gradient_sync"):  # sharded by FSDP2
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield
        return
    alone = isinstance(model, DistributedDataParallel) and not last
    with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
        yield
