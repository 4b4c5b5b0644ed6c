"""The device on which a command runs its network."""

import torch


def pick_device(asked: str, command: str) -> str:
    """Returns the requested device, by default cuda where there is one; ends the command if torch can't use it."""
    seen = torch.cuda.is_available()
    try:
        torch.device(asked or "cpu")
    except RuntimeError:
        raise SystemExit(f"{command}: device must be like cpu, cuda or cuda:1, got {asked}") from None
    if asked.startswith("cuda") and not seen:
        raise SystemExit(f"{command}: device must be cpu, as torch sees no GPU, got {asked}")
    return asked or ("cuda" if seen else "cpu")
