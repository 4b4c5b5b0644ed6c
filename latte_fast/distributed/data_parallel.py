"""A model over several ranks: replicated by DDP or sharded by FSDP2, its gradients reduced once an update."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latte_fast.distributed.ranks import Ranks


def local(x: Tensor) -> Tensor:
    """Returns this rank's part of a tensor; a DTensor is known by its method, as its import takes a second."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole_tensor(x: Tensor) -> Tensor:
    """Gathers a tensor from all ranks, which must call this together."""
    x = x.detach()
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def spread(model: nn.Module, parallel: str, ranks: Ranks, precision: str = "fp32") -> nn.Module:
    """Returns what to call in training: the model itself, its DDP wrapper, or the model sharded in place."""
    if parallel == "ddp":
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    if parallel == "fsdp":
        # imported here, as it takes a second that a single process need not spend
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        inner = outer = MixedPrecisionPolicy()
        if precision == "bf16-weights":
            # the shards are the fp32 master; only gathered weights are bf16
            half = torch.bfloat16
            # a block's inputs are not cast: all but the rotary tables are bf16 already, as is its output for the next
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
    """Drops gathered weights of a sharded model: after a forward without backward they stay, and miss later writes."""
    reshard = getattr(model, "reshard", None)  # fully_shard gives a model this method
    if reshard is not None:
        reshard()


@contextmanager
def reducing(model: nn.Module, last: bool) -> Iterator[None]:
    """Reduces gradients over ranks only in the last micro-batch's backward."""
    if hasattr(model, "set_requires_gradient_sync"):  # sharded by FSDP2
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield
        return
    alone = isinstance(model, DistributedDataParallel) and not last
    with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
        yield
