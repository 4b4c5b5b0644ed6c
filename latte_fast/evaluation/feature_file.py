"""Files of features that another program computed."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

KEY = "features"


def read_features(name: str, path: str | Path) -> Tensor:
    """Reads float64 rows (N, D) of a .npy, or of `features` in a .npz or .safetensors; none of these runs code."""
    rule = f"evaluate: {name} must be features (N, D) of finite numbers"
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{rule}, got {path}, no file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                rows = file.get_tensor(KEY).double()
        else:
            held = np.load(path, allow_pickle=False)
            rows = torch.from_numpy(np.asarray(held[KEY] if path.suffix == ".npz" else held, np.float64).copy())
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{rule}, got {path} ({error})") from error
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"{rule}, got {tuple(rows.shape)} in {path}")
    finite = rows.isfinite().all(1)
    if not finite.all():
        raise ValueError(f"{rule}, got others in row {int((~finite).nonzero()[0])} of {path}")
    return rows
