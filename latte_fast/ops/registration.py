"""One way to register an op: two schemas, whose names say the rest, as in PyTorch's derivatives.yaml."""

import functools
import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from latte_fast import backends
from latte_fast._ext.platforms import WHY_NOT
from latte_fast.ops.sizes import Sizes
from latte_fast.tracing import constant_in_graphs

LIBRARY = torch.library.Library("latte_fast", "DEF")
REGISTRY: dict[str, "KernelOp"] = {}
_HOMES = {"triton": "latte_fast.kernels.{}", "cpu": "latte_fast._ext.{}", "cuda": "latte_fast._ext.{}_cuda"}
_PLAIN = (Tensor, torch.nn.Parameter)
_homes: dict[tuple[str, str], SimpleNamespace] = {}  # (op, backend) -> name of the launchers' module, and the module


@dataclass(eq=False)
class KernelOp:
    """latte_fast::<name> and latte_fast::<name>_backward, which launch `<kernels>_fwd` and `_bwd` of a backend.

    The backend is the last argument of both schemas; launchers, fakes and `why_not` take the others. The backward takes
    first `dh` for each result h that has a derivative, then arguments and results of the forward by their names, and
    `needs`, which says what is asked for of the gradients that it returns: `dx` is that of the argument x.
    """

    name: str  # of the op, its function and its kernels' files
    forward: str  # schema, results named
    backward: str  # schema, results named; empty for an op without a derivative
    fake: Callable  # results without values, from the forward's arguments
    example: Callable[[Sizes], dict[str, Any]]  # arguments at a model's sizes, by name and in the order of `why_not`
    more_examples: Callable[[Sizes], Iterable[tuple[str, dict[str, Any]]]] = lambda sizes: ()  # by name, for tune
    reference: Callable | None = None  # oracle with the schema's names, for an op that is called rather than run
    # whatever the backend: why kernels of ours do not serve these arguments, or None where they do
    why_not: Callable[..., str | None] = lambda *args: None
    home: str = ""  # file of the launchers, where it is not that of the op's name
    kernels: str = ""  # another op, whose launchers and backends serve this one too
    ours: tuple[str, ...] = ("cpu", "triton")  # backends that have kernels of ours, in order of preference
    libraries: dict[str, backends.Probe] = field(default_factory=dict)  # the other backends, which come after them
    launch: Callable = lambda launcher, *args: launcher(*args)  # where a launcher takes other arguments
    launch_backward: Callable | None = None  # the same of the backward, by default with contiguous `dh`
    backward_fake: Callable | None = None  # gradients without values, by default each like the argument of its name
    like: dict[str, str] = field(default_factory=dict)  # or like another argument of the backward
    sums: dict[str, str] = field(default_factory=dict)  # argument -> the gradient that, summed to its shape, is its own
    flops: Callable[..., int] | None = None  # of matrix products, from the forward's arguments, shapes for tensors
    backward_flops: Callable[..., int] | None = None
    elementwise: int = 0  # operations on an element of the widest tensor, where there are no matrix products

    def __post_init__(self) -> None:
        self._overload = _define(self.name, self.forward, self._forward, self.fake, self.flops)
        self._arguments = [a.name for a in torch._C.parse_schema(f"op{self.forward}").arguments]
        if self.backward:
            self._register_gradient()
        if not self.kernels:
            self.kernels = self.name
            backends.register(self.name, {b: self._probe(b) for b in self.ours} | self.libraries)
        self._fwd, self._bwd = f"{self.kernels}_fwd", f"{self.kernels}_bwd"
        REGISTRY[self.name] = self

    def _probe(self, backend: str) -> backends.Probe:
        """Probe of a backend with kernels of ours: the platform, the op, then the kernels, each by the arguments."""
        home = SimpleNamespace(name=_HOMES[backend].format(self.home or self.name), module=None)
        _homes[self.name, backend] = home

        def probe(x: Any, *args: Any) -> str | None:
            first = x if isinstance(x, Tensor) else x[0]
            return WHY_NOT[backend](first) or self.why_not(x, *args) or launchers(self.name, backend).why_not(x, *args)

        return probe

    def _register_gradient(self) -> None:
        self._read_names(*(torch._C.parse_schema(f"op{schema}") for schema in (self.forward, self.backward)))
        backward, backward_fake = f"{self.name}_backward", self.backward_fake or self._fake_gradients
        self._gradient = _define(backward, self.backward, self._backward, backward_fake, self.backward_flops)
        register_autograd = torch.library.register_autograd
        register_autograd(f"latte_fast::{self.name}", self._gradients, setup_context=self._save, lib=LIBRARY)
        register_autograd(f"latte_fast::{backward}", self._refuse, lib=LIBRARY)

    def __call__(self, *args: Any) -> Any:
        """Runs the op on the backend that serves these arguments."""
        backend = backends.choose(self.kernels, *args)
        if backend == "reference" and self.reference is not None:
            return self.reference(**dict(zip(self._arguments, args, strict=False)))
        return self.run(backend, *args)

    def bound(self, *args: Any) -> Callable:
        """Returns what runs the op where these arguments would run, without checks, for many calls of the same kind."""
        backend = backends.choose(self.kernels, *args)
        if backend == "reference" and self.reference is not None:
            return self.reference
        return functools.partial(self.run, backend)

    def run(self, backend: str, *args: Any) -> Any:
        """Runs the op on a backend with kernels of ours, without the dispatcher where nobody would notice."""
        return self.direct(backend, *args) if call_directly(*args) else self._overload(*args, backend)

    def direct(self, backend: str, *args: Any) -> Any:
        """Runs the op on a backend with kernels of ours, without the dispatcher."""
        return self.launch(getattr(launchers(self.kernels, backend), self._fwd), *args)

    def _forward(self, *args: Any) -> Any:
        return self.direct(args[-1], *args[:-1])

    def _backward(self, *args: Any) -> Any:
        launcher = getattr(launchers(self.kernels, args[-1]), self._bwd)
        if self.launch_backward is not None:
            return self.launch_backward(launcher, *args[:-1])
        given = len(self._given)
        return launcher(*(d if d is None else d.contiguous() for d in args[:given]), *args[given:-1])

    def _fake_gradients(self, *args: Any) -> Any:
        known = dict(zip(self._wanted, args, strict=False))
        given = [known[self.like.get(name, name)] for name in self._returned]
        some = next(x for x in reversed(given) if x is not None)
        grads = tuple(some.new_empty(0) if x is None else x.new_empty(x.shape) for x in given)
        return grads if len(grads) > 1 else grads[0]

    def _read_names(self, forward: Any, backward: Any) -> None:
        self._results = [r.name for r in forward.returns]
        self._wanted = [a.name for a in backward.arguments]
        self._returned = [r.name[1:] for r in backward.returns]
        self._given = [f"d{name}" for name in self._results if f"d{name}" in self._wanted]
        kept = [a for a in backward.arguments if a.name not in (*self._given, "needs")]
        self._kept_tensors = [a.name for a in kept if "Tensor" in str(a.type)]
        self._kept_values = [a.name for a in kept if "Tensor" not in str(a.type)]

    def _save(self, ctx: Any, inputs: tuple, output: Any) -> None:
        known = dict(zip(self._arguments, inputs, strict=True))
        known |= zip(self._results, output if isinstance(output, tuple) else (output,), strict=True)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(known[name] for name in self._results if f"d{name}" not in self._given))
        ctx.save_for_backward(*(known[name] for name in self._kept_tensors))
        ctx.kept = {name: known[name] for name in self._kept_values}
        ctx.shapes = {name: known[name].shape for name in self.sums if known[name] is not None}

    def _gradients(self, ctx: Any, *douts: Tensor | None) -> tuple:
        if all(d is None for d in douts):
            return (None,) * len(self._arguments)
        asked = dict(zip(self._arguments, ctx.needs_input_grad, strict=True))
        known = ctx.kept | dict(zip(self._kept_tensors, ctx.saved_tensors, strict=True))
        known |= {f"d{name}": d for name, d in zip(self._results, douts, strict=True)}
        known["needs"] = [asked[name] for name in self._returned]
        grads = self._gradient(*(known[name] for name in self._wanted))
        found = dict(zip(self._returned, grads if isinstance(grads, tuple) else (grads,), strict=True))
        known |= {f"d{name}": d for name, d in found.items()}
        found |= {name: known[d].sum_to_size(ctx.shapes[name]) for name, d in self.sums.items() if asked[name]}
        return tuple(found.get(name) if needed else None for name, needed in asked.items())

    def _refuse(self, ctx: Any, *grads: Tensor) -> None:
        hint = f'for one, run inside use_backend({self.kernels}="reference")'
        raise RuntimeError(f"{self.name}: no second derivative; {hint}")


def _define(name: str, schema: str, body: Callable, fake: Callable, flops: Callable[..., int] | None) -> Any:
    """Defines latte_fast::name, whose body serves every device, since it dispatches on the backend."""
    arguments, results = schema.split(" -> ")
    LIBRARY.define(name + arguments + " -> " + re.sub(r"Tensor \w+", "Tensor", results))
    LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"latte_fast::{name}", lambda *args: fake(*args[:-1]), lib=LIBRARY)
    packet = getattr(torch.ops.latte_fast, name)
    if flops is not None:
        register_flop_formula(packet)(lambda *args, out_shape=None: flops(*args[:-1]))
    return packet.default


@constant_in_graphs
def _load(home: SimpleNamespace) -> None:
    """Imports a module, which torch.compile cannot trace but can leave to this function."""
    if home.module is None:
        home.module = importlib.import_module(home.name)


def launchers(op: str, backend: str) -> Any:
    """The module that launches an op's kernels, imported when it is first needed."""
    home = _homes[op, backend]
    _load(home)
    return home.module


def empty(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What a fake returns for a contiguous result of x's shape, by default of its dtype."""
    return x.new_empty(x.shape, dtype=dtype)


def records(*tensors: Tensor) -> bool:
    """Whether a gradient may be asked for; inside a transform of torch.func the tensors do not tell."""
    if not torch.is_grad_enabled():
        return False
    transformed = not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or any(t.requires_grad for t in tensors)


def why_no_gradient(*args: Any) -> str | None:
    """Why an op without a backward does not serve these arguments, or None where no gradient is asked for."""
    return "it has no gradient, and one is asked for" if records(*(a for a in args if isinstance(a, Tensor))) else None


def call_directly(*args: Any) -> bool:
    """Whether an op's body may be called without the dispatcher: nobody watches or records."""
    # a call of bias_gelu on 16 numbers takes 5.6 us then, 13.2 by the dispatcher (AMD EPYC, 2026-11-21)
    if torch.compiler.is_compiling():
        return False
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_any_autocast_enabled()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    grad = torch.is_grad_enabled()
    for a in args:
        if type(a) in _PLAIN:
            if grad and a.requires_grad:
                return False
        elif isinstance(a, Tensor):
            return False
    return True
