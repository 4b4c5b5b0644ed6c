"""Checkpoints of a run: written whole or not at all, each with the checksums of its files.

checkpoints/step-0001000/
    model.safetensors  ema.safetensors   the weights under upstream's keys, fp32
    state/                               everything needed to resume, sharded by torch.distributed.checkpoint
    meta.json                            step, samples, seed
    manifest.json                        bytes and sha256 of the others
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_fast.distributed.data_parallel import whole_tensor
from latte_fast.distributed.ranks import Ranks
from latte_fast.files import naming, sha256_of
from latte_fast.models.checkpoint import CheckpointError, save_tensors

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)$")


def step_of(folder: Path) -> int:
    match = _NAME.search(folder.name)
    assert match is not None, folder
    return int(match.group(1))


def all_checkpoints(run: Path) -> list[Path]:
    """Returns the folders of a run's checkpoints, oldest first, damaged ones included."""
    home = run / FOLDER
    return sorted((p for p in home.glob("step-*") if _NAME.search(p.name)), key=step_of) if home.is_dir() else []


def whole(path: Path) -> tuple[Path, Path]:
    """Returns a run's folder and a whole checkpoint of it: `path` where that is a checkpoint's, else the newest."""
    if path.parent.name == FOLDER:
        verify(path)
        return path.parents[1], path
    found = latest(path)
    if found is None:
        raise ValueError(f"load: path must have a whole checkpoint in {FOLDER}/, got {path}")
    return path, found


def latest(run: Path, say: Callable[[str], None] = print) -> Path | None:
    """Returns the newest checkpoint whose checksums match, and names each newer damaged one; None where there is none.

    Raises CheckpointError where all are damaged.
    """
    folders = all_checkpoints(run)
    wrong = []
    for folder in reversed(folders):
        try:
            verify(folder)
        except CheckpointError as error:
            wrong.append(str(error))
            if len(wrong) < len(folders):
                say(f"{error}; an older checkpoint is tried")
        else:
            return folder
    if wrong:
        more = f" ({len(wrong)} checkpoints, none of them whole)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{wrong[0]}{more}")
    return None


def remove_partial(run: Path) -> None:
    """Removes checkpoints that a killed process had begun to write or to remove."""
    for left in (run / FOLDER).glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def verify(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is missing, of another length, or changed."""
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        text = path.read_text()
        content = json.loads(text)
        files = content["files"]
        intact = content["sha256"] == _digest_of(files) and text == _manifest(content)
        if not files:
            raise ValueError("it names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: missing or damaged: {error}") from None
    if not intact:
        raise CheckpointError(f"{path}: damaged: its own checksum differs")
    for name, want in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != want["bytes"]:
            raise CheckpointError(f"{file}: must have {want['bytes']} bytes, found {file.stat().st_size}")
        if sha256_of(file) != want["sha256"]:
            raise CheckpointError(f"{file}: damaged: its checksum differs")


def save(
    run: Path,
    step: int,
    state: dict[str, Any],
    weights: Mapping[str, Mapping[str, Tensor]],
    meta: dict[str, Any],
    ranks: Ranks,
    keep: int,
    kept: Collection[int] = (),
) -> Path:
    """Writes a checkpoint under a hidden name, renames it, then removes all but the newest `keep` up to this step.

    Args:
        run: folder of the run.
        step: number of updates done.
        state: nested dicts of tensors, which may be sharded.
        weights: tensors under upstream's keys, by the stem of their file.
        meta: plain values for meta.json.
        ranks: processes of the run; every rank must call this.
        keep: number of checkpoints to keep.
        kept: steps whose checkpoints are not removed.
    """
    home = run / FOLDER
    final, partial = home / f"step-{step:07d}", home / f".step-{step:07d}.partial"
    try:
        with naming(final):
            _write(home, partial, state, weights, meta, ranks)
            if ranks.first:
                _publish(home, partial, final, step, keep, kept)
    except BaseException:
        # on a full disk half a checkpoint would be in the way of all that follows
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    ranks.barrier()
    return final


def _write(
    home: Path,
    partial: Path,
    state: dict[str, Any],
    weights: Mapping[str, Mapping[str, Tensor]],
    meta: dict[str, Any],
    ranks: Ranks,
) -> None:
    # imported here, as this import is half of a command's start-up time
    import torch.distributed.checkpoint as dcp

    def begin() -> None:
        home.mkdir(exist_ok=True)
        remove_partial(home.parent)
        partial.mkdir()

    ranks.from_first(begin)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(state, storage_writer=dcp.FileSystemWriter(partial / "state"), no_dist=ranks.count == 1)
    # a file of weights taken from a run still tells what model they are of
    keywords = {meta["family"]: json.dumps(meta["model"])} if "family" in meta else {}
    for stem, tensors in weights.items():
        whole = {}
        for name, tensor in tensors.items():
            # every rank takes part in gathering, one tensor at a time; rank 0 keeps it
            full = whole_tensor(tensor)
            if ranks.first:
                whole[name] = full.cpu().contiguous()
        if ranks.first:
            save_tensors(whole, partial / f"{stem}.safetensors", {"format": "pt", **keywords})
    if ranks.first:
        (partial / "meta.json").write_text(json.dumps(meta, indent=1))


def _publish(home: Path, partial: Path, final: Path, step: int, keep: int, kept: Collection[int]) -> None:
    """Gives a written checkpoint its name, and removes all but the newest `keep` up to this step and those `kept`."""
    _seal(partial)
    if final.exists():
        # a damaged checkpoint of the same step, which resuming skipped
        _remove(final)
    os.rename(partial, final)
    _sync(home)
    # later ones are damaged, as resuming skipped them, so they do not count as kept
    for old in [p for p in all_checkpoints(home.parent) if step_of(p) <= step][:-keep]:
        if step_of(old) not in kept:
            _remove(old)


def load(folder: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Fills the tensors of `state` in place from a verified checkpoint, however many ranks wrote it."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder / "state"), no_dist=ranks.count == 1)


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        meta["step"], meta["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'meta.json'}: missing or damaged: {error!r}") from None
    if isinstance(meta.get("sums"), list):
        # version 0.1 wrote a list
        meta["sums"] = dict(zip(("loss", "mse", "vb"), meta["sums"], strict=True))
    return meta


def optimizer_state(optimizer: torch.optim.AdamW, params: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns AdamW's moments and step by parameter name, as zeros where there was no update yet."""
    for p in params.values():
        if not optimizer.state[p]:
            step = torch.zeros((), device=p.device)
            optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return {name: optimizer.state[p] for name, p in params.items()}


def _remove(folder: Path) -> None:
    """Removes a folder, renamed first so that a kill leaves no half of it under its name."""
    hidden = folder.with_name(f".{folder.name}.old.partial")
    os.rename(folder, hidden)
    shutil.rmtree(hidden)


def _seal(folder: Path) -> None:
    """Writes the manifest, then flushes all files and folders to disk."""
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    (folder / MANIFEST).write_text(_manifest({"files": files, "sha256": _digest_of(files)}))
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _manifest(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest_of(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
