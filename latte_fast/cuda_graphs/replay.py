"""Replays a model's forward as a CUDA graph: captured once for each set of shapes, then one launch at any depth."""

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latte_fast import backends
from latte_fast.modules.hooks import is_untouched
from latte_fast.modules.precision import selected
from latte_fast.ops.registration import call_directly

# forwards before a capture: kernels are compiled, tables and workspaces made
WARM_UPS = 3
_FIXED = (str, bool, int, float, type(None))
_ALL_HAVE = frozenset(vars(nn.Module()))
_PLAIN = (Tensor, nn.Parameter)
_inside = threading.local()


class Replay(nn.Module):
    """Wraps a model with the same call and results; on a GPU without gradients, a call replays a CUDA graph.

    It helps where the GPU waits for the host's launches: small models, a few clips at a time. The first call at new
    shapes captures, which takes some forwards and keeps the memory of one; later calls copy their inputs and replay.
    Use it on one stream at a time.

    Weights may change in place, as an optimiser's step or load_state_dict changes them. After anything else (a weight
    moved, a layer exchanged, a LoRA switched off, another backend or matmul precision) the next call captures again.
    Calls that a graph can't hold run the model itself: gradients, training mode, autocast, hooks, sharded weights,
    tracing, inputs that are not on a GPU. A copy starts without graphs.

    Args:
        forward: a Latte or LatteIMG, or a method of one such as model.forward_with_cfg. Arguments other than tensors
            are fixed in a graph: another guidance scale is another graph.
        most: largest number of graphs kept, in one shared memory pool; the least recently used goes first.
    """

    def __init__(self, forward: Callable[..., Tensor], most: int = 8):
        super().__init__()
        owner = getattr(forward, "__self__", forward)
        if not isinstance(owner, nn.Module):
            raise TypeError(f"Replay: forward must be a module or a method of one, got {type(forward).__name__}")
        if most < 1:
            raise ValueError(f"Replay: most must be at least 1, got {most}")
        self.model, self.most = owner, most
        self._run = (forward,)  # a module as an attribute would be registered twice
        self._begin()

    def _begin(self) -> None:
        self._graphs: OrderedDict[tuple, Graph] = OrderedDict()
        self._pool: Any = None
        self._lock = threading.Lock()  # held from the copy of the inputs to the copy of the output: threads take turns

    def __getstate__(self) -> dict[str, Any]:
        # a graph is valid only in this process and for these weights
        return {name: x for name, x in vars(self).items() if name not in ("_graphs", "_pool", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with inside_graph():
            return self._call(*args, **kwargs)

    def _call(self, *args: Any, **kwargs: Any) -> Tensor:
        (run,) = self._run
        inputs = (*args, *kwargs.values())
        key = graph_key(self.model, inputs)
        if isinstance(key, str):
            if not torch.compiler.is_compiling():
                backends.say_once(f"Replay: the model runs as it is: {key}")
            return run(*args, **kwargs)
        # tensors by what kernels are compiled and launched for, other arguments by value
        shapes = (*kwargs, *((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in inputs))
        shapes = (selected(self.model), *shapes)  # the precisions of a run have a graph each
        with self._lock:
            graph = self._graphs.get(shapes)
            if graph is not None and graph.key != key:
                # another thread's capture may have made tables, which are part of the key, since it was taken
                key = graph_key(self.model, inputs)
            if graph is None or graph.key != key:
                self._graphs.pop(shapes, None)
                graph = None  # frees its memory for the next graph
                while len(self._graphs) >= self.most:
                    self._graphs.popitem(last=False)
                graph = self._graphs[shapes] = self._captured(run, args, kwargs)
            self._graphs.move_to_end(shapes)
            tensors = (x for x in inputs if isinstance(x, Tensor))
            for ours, x in zip(graph.inputs, tensors, strict=True):
                ours.copy_(x, non_blocking=True)
            graph.replay()
            return graph.output.clone()

    def forget(self) -> None:
        """Frees all graphs and their memory."""
        self._graphs.clear()
        self._pool = None

    def _captured(self, run: Callable[..., Tensor], args: tuple, kwargs: dict[str, Any]) -> "Graph":
        # inference tensors could not be written in other modes; leaving inference mode would turn gradients on
        with torch.inference_mode(False), torch.no_grad():
            args = tuple(contiguous_copy(x) for x in args)
            kwargs = {name: contiguous_copy(x) for name, x in kwargs.items()}
            inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if not self._graphs:
                self._pool = new_pool()  # torch can't reuse a pool that all graphs have left

            def call() -> Tensor:
                output = run(*args, **kwargs)
                if not isinstance(output, Tensor):
                    raise TypeError(f"Replay: forward must return a tensor, got {type(output).__name__}")
                return output

            replayed, output = capture(call, inputs[0].device, self._pool)
            # after the capture, so that tables made on the model's first calls are included
            return Graph(replayed, output, inputs, graph_key(self.model, tuple(inputs)))


@contextmanager
def inside_graph() -> Iterator[None]:
    """Marks a call as part of a graph: what it calls does not make graphs of its own."""
    before = getattr(_inside, "graph", False)
    _inside.graph = True
    try:
        yield
    finally:
        _inside.graph = before


def is_inside_graph() -> bool:
    return getattr(_inside, "graph", False)


class Graph(NamedTuple):
    replay: Callable[[], None]
    output: Tensor  # written by a replay
    inputs: list[Tensor]  # read by a replay
    key: list | str  # of the model when captured; see `graph_key`


def contiguous_copy(x: Any) -> Any:
    return x.clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x


def graph_key(model: nn.Module, inputs: tuple) -> list | str:
    """Returns all that a graph of this call fixes beside inputs and weight values, or why there can be no graph.

    The walk takes 0.7 ms for 28 blocks (one core of an AMD EPYC, 2026-11-22), while the GPU runs the call before.
    """
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if not tensors or not all(on_gpu(x) for x in tensors):
        return "an input is not on a GPU"
    if not call_directly(*tensors):
        return "gradients, autocast, a transform or a trace"
    if not all(isinstance(x, (Tensor, *_FIXED)) for x in inputs):
        return "an input that is neither a tensor nor a number"
    if is_capturing():
        return "another capture"
    if nn.modules.module._has_any_global_hook():
        return "hooks"
    key: list[Any] = [backends.state(), precision()]
    grad, waiting = torch.is_grad_enabled(), [model]
    while waiting:
        module = waiting.pop()
        if module.training:
            return "training mode"
        if is_hooked(module):
            return "hooks"
        reuse = vars(module).get("stack_reuse")
        if reuse is not None and not reuse.static:
            return "blocks that are left out as the host says"
        key += attributes_of(module)
        for group in (module._parameters, module._buffers):
            for x in group.values():
                if x is None:
                    continue
                if type(x) not in _PLAIN:
                    return f"a weight that is a {type(x).__name__}"
                if grad and x.requires_grad:
                    return "gradients of its weights"
                key.append((x.data_ptr(), x.dtype, x.shape, x.stride()))
        waiting += [child for child in module._modules.values() if child is not None]
    return key


def attributes_of(module: nn.Module) -> list[Any]:
    """Returns a module and what a graph of it fixes beside weights: whether a LoRA is on, and the like.

    They are by name, as a run takes some away at its end and sets them again.
    """
    if type(module).__module__.startswith("torch.nn."):
        return [module]
    return [module, *((n, comparable(x)) for n, x in sorted(vars(module).items()) if n not in _ALL_HAVE)]


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks or a replaced forward; that of torch.compile's wrapper does not count."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return bool(hooked or not ("_orig_mod" in module._modules or is_untouched(module)))


def comparable(x: Any) -> Any:
    """Returns a value that stays equal until the attribute is changed, be it in place."""
    if isinstance(x, Tensor):
        return x.data_ptr(), x.dtype, x.shape, x.stride()
    if isinstance(x, dict):
        return [(name, comparable(value)) for name, value in x.items()]
    if isinstance(x, (list, tuple, set)):
        return [comparable(value) for value in x]
    if isinstance(x, _FIXED):
        return x
    if dataclasses.is_dataclass(x):
        return type(x), comparable(vars(x))
    # others by identity, or by type alone where they define ==, which need not return a bool (arrays)
    return x if type(x).__eq__ is object.__eq__ else type(x)


def precision() -> tuple:
    """Returns torch's process-wide settings that change the results of matrix products and attention."""
    of_torch = torch.backends.cuda
    # torch 2.8 has no setting for each backend; in later versions the global getter raises where one was set
    by_backend = getattr(torch._C, "_get_fp32_precision_getter", None)
    return (
        by_backend("cuda", "matmul") if by_backend else torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        of_torch.flash_sdp_enabled(),
        of_torch.mem_efficient_sdp_enabled(),
        of_torch.math_sdp_enabled(),
        of_torch.cudnn_sdp_enabled(),
    )


def on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def new_pool() -> Any:
    return torch.cuda.graph_pool_handle()


@functools.cache
def stream_of(device: torch.device) -> Any:
    """Returns the stream that captures a device's graphs: torch's own for this stays on the first device that captured.

    One stream serves all, as each keeps cuBLAS workspaces for good; warm-ups on it allocate them outside graph pools.
    """
    return torch.cuda.Stream(device)


def capture(call: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Callable[[], None], Tensor]:
    """Captures a call; returns the function that replays it, and the tensor that a replay writes."""
    with torch.cuda.device(device):
        side = stream_of(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads, which read data or decode, may allocate and copy during the capture
        with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
            output = call()
    return graph.replay, output
