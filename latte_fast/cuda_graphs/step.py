"""Replays a model's forward and backward in training as two CUDA graphs, captured once for each set of shapes."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latte_fast import backends
from latte_fast.cuda_graphs.replay import attributes_of, is_capturing, is_hooked, new_pool, on_gpu, precision, stream_of

WARM_UPS = 3  # kernels are compiled, workspaces made


class StepReplay:
    """Calls a model in training by two CUDA graphs, one of its forward and one of its backward.

    A step of 28 blocks launches a thousand kernels, for which the host may need longer than the GPU; a replay is two
    launches, however much the backward recomputes. The numbers are those of the model called by itself.

    The first call at new shapes captures, which takes some steps; the memory of a step stays with its graph. Weights
    may change in place, as an optimizer changes them; after anything else (a weight moved, a layer exchanged, a setting
    of the model, another backend) the next call captures again.
    Gradients of the inputs are not given. What a graph can't hold runs the model itself: hooks, evaluation, a CPU.

    Args:
        model: model whose parameters are trained, not wrapped by DDP or FSDP.
        most: largest number of graphs kept; the least recently used goes first.
    """

    def __init__(self, model: nn.Module, most: int = 2):
        if most < 1:
            raise ValueError(f"StepReplay: most must be at least 1, got {most}")
        self.model, self.most = model, most
        self._graphs: OrderedDict[tuple, tuple[Call, Graphs, list]] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        reason = why_not(self.model, given)
        if reason is not None:
            backends.say_once(f"StepReplay: the model runs as it is: {reason}")
            return self.model(*args, **kwargs)
        tensors = [x for x in given if isinstance(x, Tensor)]
        dtype = backends.autocast_dtype(tensors[0].device.type)
        shapes = (len(args), *kwargs, *(described(x) for x in given), dtype)
        if shapes in self._graphs and self._graphs[shapes][2] != step_key(self.model):
            del self._graphs[shapes]
        if shapes not in self._graphs:
            while len(self._graphs) >= self.most:
                self._graphs.popitem(last=False)
            call = Call(self.model, args, kwargs, dtype)
            graphs = make_graphs(call, tuple(x.detach().clone() for x in tensors))
            self._graphs[shapes] = call, graphs, step_key(self.model)  # tables of the first call included
        self._graphs.move_to_end(shapes)
        call, graphs, _ = self._graphs[shapes]
        trained = (p for p in call.parameters() if p.requires_grad)
        out: Any = Replayed.apply(graphs, len(tensors), *tensors, *trained)
        return out if call.kind is None else call.kind(sample=out)

    def forget(self) -> None:
        """Frees all graphs and their memory."""
        self._graphs.clear()


class Call(nn.Module):
    """A model's call as a function of its tensors alone, that returns a tensor; what else was given is fixed."""

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], dtype: torch.dtype | None):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.kind: Any = None  # of an output object, whose tensor is `sample`
        self._args = tuple(None if isinstance(x, Tensor) else (x,) for x in args)
        self._kwargs = {name: None if isinstance(x, Tensor) else (x,) for name, x in kwargs.items()}

    def forward(self, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        args = [next(rest) if x is None else x[0] for x in self._args]
        kwargs = {name: next(rest) if x is None else x[0] for name, x in self._kwargs.items()}
        # a cast weight that autocast keeps would be that of the capture's step
        device = tensors[0].device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            out = self.model(*args, **kwargs)
        if not isinstance(out, Tensor):
            self.kind, out = type(out), out.sample
        return out


def step_key(model: nn.Module) -> list[Any]:
    """Returns what graphs of a model fix beside the inputs and the values of its weights."""
    key: list[Any] = [backends.state(), precision()]
    for module in model.modules():
        key += attributes_of(module)
    return key + [(p.data_ptr(), p.dtype, p.requires_grad) for p in model.parameters()]


def described(x: Any) -> Any:
    return (x.shape, x.dtype, x.device, x.stride()) if isinstance(x, Tensor) else x


def why_not(model: nn.Module, given: tuple) -> str | None:
    """Why a call can't be two graphs, or None where it can."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    if not tensors or not all(on_gpu(x) for x in tensors):
        return "an input is not on a GPU"
    if not model.training or not torch.is_grad_enabled():
        return "it is not in training"
    if torch.compiler.is_compiling() or is_capturing():
        return "it is traced or captured already"
    if any(x.requires_grad for x in tensors):
        return "an input wants a gradient"
    if not all(isinstance(x, (Tensor, str, bool, int, float, type(None))) for x in given):
        return "an input that is neither a tensor nor a number"
    if nn.modules.module._has_any_global_hook() or any(is_hooked(m) for m in model.modules()):
        return "hooks"
    if any(type(p) is not nn.Parameter for p in model.parameters()):
        return "weights that are sharded or of 8 bits"
    return None


@dataclass
class Graphs:
    """A call's two graphs and the tensors that they read and write."""

    inputs: tuple[Tensor, ...]
    out: Tensor
    dout: Tensor
    grads: list[Tensor | None]  # of the trained parameters
    forward: Callable[[], None]
    backward: Callable[[], None]
    calls: int = 0


class Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphs: Graphs, count: int, *given: Tensor) -> Tensor:
        for ours, x in zip(graphs.inputs, given[:count], strict=True):
            ours.copy_(x, non_blocking=True)
        graphs.forward()
        graphs.calls += 1
        ctx.graphs, ctx.call, ctx.count = graphs, graphs.calls, count
        return graphs.out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple:
        graphs = ctx.graphs
        if ctx.call != graphs.calls:
            raise RuntimeError("StepReplay: a later call has overwritten what this backward needs; take it before")
        graphs.dout.copy_(dout)
        graphs.backward()
        # copies: autograd adds the next step's gradients to these, and a replay writes into its own
        return (None, None, *(None,) * ctx.count, *(None if g is None else g.clone() for g in graphs.grads))


def make_graphs(call: Call, tensors: tuple[Tensor, ...]) -> Graphs:
    """Captures a call on these tensors and its backward."""
    weights = [p for p in call.parameters() if p.requires_grad]

    def backward(out: Tensor, dout: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(out, weights, dout, allow_unused=True))

    with torch.cuda.device(tensors[0].device):
        side = stream_of(tensors[0].device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                out = call(*tensors)
                backward(out, torch.zeros_like(out))
            del out
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graphs' memory is their own
        pool, graphs = new_pool(), (torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph())
        # other threads, which read data, may allocate and copy during a capture
        with torch.cuda.graph(graphs[0], pool=pool, stream=side, capture_error_mode="thread_local"):
            out = call(*tensors)
        dout = torch.empty_like(out)
        with torch.cuda.graph(graphs[1], pool=pool, stream=side, capture_error_mode="thread_local"):
            grads = backward(out, dout)
    return Graphs(tensors, out.detach(), dout, grads, graphs[0].replay, graphs[1].replay)
