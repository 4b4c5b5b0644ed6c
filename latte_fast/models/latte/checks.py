"""Checks of a Latte's inputs before any work is done; each message names argument, rule and value."""

from typing import Any

import torch
from torch import Tensor

from latte_fast import backends
from latte_fast.models.checks import EXTEND, check_keyword
from latte_fast.modules.linear import weight_of

_INTEGERS = (torch.int64, torch.int32)  # index dtypes of F.embedding


def check_inputs(model: Any, x: Tensor, t: Tensor, y: Tensor | None, text: Tensor | None, images: int = 0) -> None:
    model.check_parts("Latte")
    _check_clip(model, x, images)
    weight = weight_of(model.x_embedder.proj)
    if x.device != weight.device:
        raise ValueError(f"Latte: x must be on the weights' device {weight.device}, got {x.device}")
    if x.dtype != weight.dtype and backends.autocast_dtype(x.device.type) is None:
        raise TypeError(f"Latte: x must have the weights' dtype {weight.dtype}, got {x.dtype}")
    batch = x.shape[0]
    check_time(t)
    if t.shape != (batch,) and t.shape != (batch, x.shape[1]):
        rule = f"(B,) with B = {batch}, or (B, F) with F = {x.shape[1]}{' frames and images' if images else ''}"
        raise ValueError(f"Latte: t must be {rule}, got {tuple(t.shape)}")
    if t.dim() == 2 and model.config.patch_frames > 1:
        raise ValueError(f"Latte: t must be (B,) where a patch spans frames, which share a step, got {tuple(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"Latte: t must be on x's device {x.device}, got {t.device}")
    if model.extras == 2:
        check_labels(model, "y", y, (batch,))
    if model.extras == 78:
        if text is None:
            raise ValueError(f"Latte: text_embedding must be given (B, ...) with {model.text_width} values, got None")
        check_dense("text_embedding", text)
        if not text.dim():
            raise ValueError("Latte: text_embedding must be (B, ...), got a number")
        if text.shape[0] != batch or text[:1].numel() not in (0, model.text_width):
            raise ValueError(
                f"Latte: text_embedding must hold B = {batch} rows of {model.text_width}, got {tuple(text.shape)}"
            )


def check_guided(x: Any, cfg_scale: Any) -> None:
    """Checks what forward_with_cfg takes besides the inputs of forward."""
    if not isinstance(x, Tensor) or not x.dim():
        raise TypeError(f"forward_with_cfg: x must be a tensor (B, F, C, H, W), got {type(x).__name__}")
    check_dense("x", x)
    if isinstance(cfg_scale, bool) or not isinstance(cfg_scale, (int, float, Tensor)):
        raise TypeError(f"forward_with_cfg: cfg_scale must be a number, got {type(cfg_scale).__name__}")
    if not isinstance(cfg_scale, Tensor) and not abs(cfg_scale) < 1e18:
        raise ValueError(f"forward_with_cfg: cfg_scale must be finite, got {cfg_scale!r:.40}")
    if x.shape[0] % 2:
        raise ValueError(f"forward_with_cfg: x must hold an even batch [cond ; uncond], got {x.shape[0]}")


def check_dense(name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_quantized:
        raise TypeError(f"Latte: {name} must be a dense tensor, got {getattr(x, 'layout', type(x).__name__)}")


def check_time(t: Any) -> None:
    check_dense("t", t)
    if t.is_complex() or t.dtype == torch.bool or t.element_size() == 1:
        raise TypeError(f"Latte: t must be integers or floats, got {t.dtype}")


def _check_clip(model: Any, x: Tensor, images: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"Latte: x must be a floating tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    check_dense("x", x)
    if not isinstance(images, (int, torch.SymInt)) or isinstance(images, bool):
        raise TypeError(f"Latte: use_image_num must be an integer, got {type(images).__name__}")
    if x.dim() != 5:
        raise ValueError(f"Latte: x must be (B, F, C, H, W), got {tuple(x.shape)}")
    _, frames, channels, height, width = x.shape
    p = model.patch_size
    if channels != model.in_channels:
        raise ValueError(f"Latte: x must have C = {model.in_channels} channels, got {channels}")
    if images < 0 or frames - images < 1:
        raise ValueError(f"Latte: use_image_num must leave at least one of the {frames} frames, got {images}")
    check_keyword("extend_time", model.extend_time, EXTEND)
    check_keyword("extend_space", model.extend_space, EXTEND)
    s = model.config.patch_frames
    if (frames - images) % s:
        raise ValueError(f"Latte: x must have F a multiple of patch_frames {s}, got {frames - images}")
    stored = s * model.temp_embed.shape[1] if model.config.has_time_table else frames - images
    if frames - images != stored and model.extend_time == "error":
        raise ValueError(
            f"Latte: x must have F = {stored} video frames as the model's table "
            f'(extend_time="sincos" or "interpolate" takes any), got {frames - images}'
        )
    for name, size in (("H", height), ("W", width)):
        if size <= 0 or size % p:
            raise ValueError(f"Latte: x must have {name} a positive multiple of the patch {p}, got {size}")
    side = int(model.pos_embed.shape[1] ** 0.5) * p
    if (height, width) != (side, side) and model.extend_space == "error":
        raise ValueError(
            f"Latte: x must have H = W = {side} as the model's table "
            f'(extend_space="sincos" or "interpolate" takes any), got {height} x {width}'
        )


def check_labels(model: Any, name: str, labels: Any, shape: tuple[int, ...]) -> None:
    """Checks labels' shape, dtype and range; the range on the CPU in eager mode only, elsewhere the lookup asserts."""
    classes = weight_of(model.y_embedder.embedding_table).shape[0]
    if labels is None:
        raise ValueError(f"Latte: {name} must be given for extras = 2, integers {shape} below {classes}, got None")
    if len(shape) == 2 and not (isinstance(labels, (list, tuple)) or (isinstance(labels, Tensor) and labels.dim())):
        raise TypeError(f"Latte: {name} must be integers {shape}, got {type(labels).__name__}")
    rows = list(labels) if len(shape) == 2 else [labels]
    device = weight_of(model.y_embedder.embedding_table).device
    for row in rows:
        check_dense(name, row)
        if row.device != device:
            raise ValueError(f"Latte: {name} must be on the weights' device {device}, got {row.device}")
        if row.dtype not in _INTEGERS:
            raise TypeError(f"Latte: {name} must be int64 or int32, got {row.dtype}")
    if len(rows) != (shape[0] if len(shape) == 2 else 1) or any(tuple(row.shape) != shape[-1:] for row in rows):
        found = [tuple(row.shape) for row in rows] if len(shape) == 2 else tuple(labels.shape)
        raise ValueError(f"Latte: {name} must have shape {shape}, got {found}")
    if torch.compiler.is_compiling():
        return
    for row in rows:
        if row.device.type == "cpu" and row.numel() and not (int(row.min()) >= 0 and int(row.max()) < classes):
            raise ValueError(f"Latte: {name} must be in [0, {classes}), got {row.tolist()}")
