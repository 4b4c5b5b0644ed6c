"""The device on which a command runs its network."""

import torch


def pick_device(name: str, command: str) -> str:
    """Returns the requested device, by default cuda where there is one; ends the command if torch can't use it."""
    seen = torch.cuda.is_available()
    try:
        torch.device(name or "cpu")
    except RuntimeError:
        raise SystemExit(f"{command}: device must be like cpu, cuda or cuda:1, got {name}") from None
    if name.startswith("cuda") and not seen:
        raise SystemExit(f"{command}: device must be cpu, as torch sees no GPU, got {name}")
    return name or ("cuda" if seen else "cpu")
