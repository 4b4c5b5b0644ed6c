"""Checks of LatteT2V's inputs before any work is done; each message names argument, rule and value."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from latte_fast import backends
from latte_fast.models.checks import EXTEND, check_keyword
from latte_fast.modules.linear import weight_of


def check_inputs(model: Any, x: Tensor, text: Tensor | None, images: int, return_dict: Any) -> None:
    model.check_parts("LatteT2V")
    if not isinstance(return_dict, (bool, int)):
        raise TypeError(f"LatteT2V: return_dict must be True or False, got {type(return_dict).__name__}")
    config, weight = model.config, weight_of(model.pos_embed.proj)
    if not isinstance(x, Tensor) or x.dim() != 5:
        raise ValueError(f"LatteT2V: hidden_states must be (B, C, F, H, W), got {tuple(getattr(x, 'shape', ()))}")
    _check_dense("hidden_states", x)
    if isinstance(images, bool) or not isinstance(images, (int, torch.SymInt)):
        raise TypeError(f"LatteT2V: use_image_num must be an integer, got {type(images).__name__}")
    batch, channels, frames, height, width = x.shape
    if channels != config.in_channels:
        raise ValueError(f"LatteT2V: hidden_states must have C = {config.in_channels} channels, got {channels}")
    if images < 0 or frames - images < 1:
        raise ValueError(f"LatteT2V: use_image_num must leave at least one of the {frames} frames, got {images}")
    check_keyword("extend_time", model.extend_time, EXTEND, "LatteT2V")
    if frames - images not in (1, config.video_length) and model.extend_time == "error":
        raise ValueError(
            f"LatteT2V: hidden_states must have F = {config.video_length} video frames as the model's table, or 1 "
            f'(extend_time="sincos" or "interpolate" takes any), got {frames - images}'
        )
    for name, size in (("H", height), ("W", width)):
        if size <= 0 or size % config.patch_size:
            rule = f"a positive multiple of the patch {config.patch_size}"
            raise ValueError(f"LatteT2V: hidden_states must have {name} {rule}, got {size}")
    if text is None:
        raise ValueError("LatteT2V: encoder_hidden_states must be given, got None")
    _check_dense("encoder_hidden_states", text)
    want = f"(B, {'1 + n, ' if images else ''}T, {config.caption_channels}) with B = {batch}"
    good = text.dim() == (4 if images else 3) and text.shape[0] == batch and text.shape[-1] == config.caption_channels
    if not good or (images and text.shape[1] != 1 + images) or text.shape[-2] == 0:
        raise ValueError(f"LatteT2V: encoder_hidden_states must be {want}, got {tuple(text.shape)}")
    for name, tensor in (("hidden_states", x), ("encoder_hidden_states", text)):
        # an offloaded weight is on the meta device until its layer is called
        if tensor.device != weight.device and not weight.is_meta:
            raise ValueError(f"LatteT2V: {name} must be on the weights' device {weight.device}, got {tensor.device}")
        if tensor.dtype != weight.dtype and backends.autocast_dtype(x.device.type) is None:
            raise TypeError(f"LatteT2V: {name} must have the weights' dtype {weight.dtype}, got {tensor.dtype}")


def _check_dense(name: str, x: Any) -> None:
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_quantized or x.is_complex():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"LatteT2V: {name} must be a dense tensor of real numbers, got {got}")


def checked_time(timestep: Any, x: Tensor) -> Tensor:
    """Returns the time steps (B,), given as a number, (1,) or (B,), or as they are (B, F), for x (B, C, F, H, W)."""
    batch, frames = x.shape[0], x.shape[2]
    rule = f"LatteT2V: timestep must be a number, (1,), (B,) or (B, F) with B = {batch} and F = {frames}"
    if not isinstance(timestep, Tensor | int | float) or isinstance(timestep, bool):
        raise TypeError(f"{rule}, got {type(timestep).__name__}")
    if isinstance(timestep, Tensor):
        _check_dense("timestep", timestep)
        if timestep.dtype == torch.bool or timestep.element_size() == 1:
            raise TypeError(f"{rule}, got {timestep.dtype}")
        if timestep.device != x.device and timestep.is_meta:
            raise ValueError(f"{rule}, on {x.device}, got one on {timestep.device}")
    elif not abs(timestep) < 1e9:
        raise ValueError(f"{rule}, got {timestep!r:.40}")
    # filled on the device: a copy from the host would wait for it, and a CUDA graph could not capture the copy
    t = timestep.to(x.device) if isinstance(timestep, Tensor) else torch.full((1,), timestep, device=x.device)
    if t.dim() == 2 and t.shape == (batch, frames) and frames > 1:
        return t
    if t.numel() not in (1, batch):
        raise ValueError(f"{rule}, got {tuple(t.shape)}")
    return t.reshape(-1).expand(batch)


def text_mask(mask: Tensor | None, text: Tensor, images: int) -> Tensor | None:
    """Returns the mask as bool (B, T), with images (B, 1 + n, T), True where a token counts.

    A mask of that shape is 1 where a token counts; diffusers' floating bias (B, 1, T) is 0 there and -10000 elsewhere.
    """
    if mask is None:
        return None
    _check_dense("encoder_attention_mask", mask)
    if mask.is_floating_point() and mask.element_size() == 1:
        raise TypeError(f"LatteT2V: encoder_attention_mask must be bool, integers or floats, got {mask.dtype}")
    if mask.device != text.device:
        raise ValueError(f"LatteT2V: encoder_attention_mask must be on {text.device}, got {mask.device}")
    want = text.shape[:-1]
    if mask.shape == want:
        if mask.is_floating_point() and not torch.compiler.is_compiling():
            rule = f"{tuple(want)} must be 1 where a token counts"
            message = f"LatteT2V: encoder_attention_mask {rule}, got negative values; a bias is (B, 1, T)"
            _require_no_negative(mask, message)
        return mask.to(torch.bool)
    if not images and mask.shape == (want[0], 1, want[1]):
        return mask[:, 0] > -1 if mask.is_floating_point() else mask[:, 0].to(torch.bool)
    rule = f"{tuple(want)}, 1 where a token counts" + ("" if images else f", or the bias {(want[0], 1, want[1])}")
    raise ValueError(f"LatteT2V: encoder_attention_mask must be {rule}, got {tuple(mask.shape)}")


# floating masks that were checked, with their version at the time
_read = WeakIdKeyDictionary()


def _require_no_negative(mask: Tensor, message: str) -> None:
    """Checks a mask once, not at every sampling step: each check waits for the GPU, and none can be captured."""
    if mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    version = None if mask.is_inference() else mask._version
    if version is not None and _read.get(mask) == version:
        return
    if (mask < 0).any():
        raise ValueError(message)
    _read[mask] = version
