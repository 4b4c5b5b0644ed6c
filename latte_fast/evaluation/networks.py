"""Opens a detector's file: TorchScript, or the weights of a network that this package knows."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latte_fast.evaluation.i3d import I3D
from latte_fast.evaluation.metrics import Call
from latte_fast.evaluation.transnet import TransNet, wheel_weights

# what --detector takes instead of a path
SHIPPED = "transnetv2"


class Network(NamedTuple):
    """A network as a metric calls it.

    Args:
        name: its name beside every number; empty for a TorchScript file, which may hold any.
        call: function of the uint8 input.
        published: whether published numbers may be made with it, so that the metric keeps its name.
    """

    name: str
    call: Callable[..., Any]
    published: bool


KNOWN: dict[str, tuple[Callable[[], nn.Module], bool]] = {"I3D": (I3D, True), "TransNetV2": (TransNet, False)}


def path_of(detector: str | Path) -> Path:
    """Returns the file of a detector, which may be named instead of given."""
    return wheel_weights() if str(detector) == SHIPPED else Path(detector)


def is_script(path: Path) -> bool:
    """Whether a file is TorchScript, which keeps its code beside its tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as box:
        return any("/code/" in name for name in box.namelist())


def open_network(path: Path, call: Call, device: torch.device) -> Network:
    """Opens a file and checks that it can be called as a metric calls it; raises ValueError naming what it lacks."""
    rule = "evaluate: detector must be a TorchScript file"
    if not is_script(path):
        state = weights_of(path)
        if state is None:
            raise ValueError(f"{rule} or weights of {' or '.join(KNOWN)}, got {path}; {call.advice}")
        return known_network(path, state, call, device)
    try:
        script = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{rule}, got {path} ({str(error).strip().splitlines()[0]}); {call.advice}") from error
    check_flags(script, path, call)
    return Network("", script, True)


def check_flags(script: Any, path: Path, call: Call) -> None:
    forward = getattr(script, "forward", None)
    known = [argument.name for argument in forward.schema.arguments[1:]] if forward else []
    missing = [flag for flag in call.flags if flag not in known]
    if missing or not known:
        lacks = f"takes {', '.join(known) or 'nothing'}"
        raise ValueError(f"evaluate: detector must be called {call}, got {path}, which {lacks}")


def weights_of(path: Path) -> dict[str, Tensor] | None:
    """Returns a file's tensors by key, or None if it holds anything else."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds on files that are none of its own
        return None
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    whole = isinstance(held, dict) and held and all(isinstance(x, Tensor) for x in held.values())
    return held if whole else None


def known_network(path: Path, state: dict[str, Tensor], call: Call, device: torch.device) -> Network:
    """Builds the known network whose keys a file has, on this device."""
    reasons = []
    for name, (make, published) in KNOWN.items():
        with torch.device("meta"):
            network = make()
        wrong = differences(network, state)
        if wrong is None:
            if "F, H, W" not in call.input or "probabilities" in call.output:
                raise ValueError(f"evaluate: detector must be called {call}, got {path}, {name} of clips")
            network = network.to_empty(device=device)
            network.load_state_dict(state, strict=False)
            return Network(name, network.eval().requires_grad_(False), published)
        reasons.append(f"of {name} ({wrong})")
    got = f"{path} (weights neither {' nor '.join(reasons)})"
    raise ValueError(f"evaluate: detector must be a TorchScript file, got {got}; {call.advice}")


def differences(network: nn.Module, state: dict[str, Tensor]) -> str | None:
    """Returns the first key or shape in which a file differs from a network's weights, or None."""
    own = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    # counters of batches, which a file may leave out
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    if missing := sorted(needed - state.keys()):
        return f"it lacks {len(missing)} of {len(own)} tensors, {missing[0]} first"
    if more := sorted(state.keys() - own.keys()):
        return f"it has {len(more)} more tensors, {more[0]} first"
    for name, x in state.items():
        if tuple(x.shape) != own[name]:
            return f"{name} must be {own[name]}, not {tuple(x.shape)}"
    return None
