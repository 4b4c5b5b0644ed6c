"""What a codec that merges frames makes of a video: it sees all frames at once, but for those that fill no latent."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from latte_fast.codecs.vae import VAE
from latte_fast.data.tokens import stored
from latte_fast.media.pixels import normalise

Part = tuple[int, Tensor | str]


def merged_latents(parts: Iterable[Part], vae: VAE, flip: bool, dtype: torch.dtype) -> dict[str, Tensor] | str:
    """Returns the latents of one video, of the mirrored one too, or why the video does not decode."""
    views = _whole(parts, vae, flip)
    if isinstance(views, str):
        return views
    return {"mean" + key: vae.encode(video)[0][0].to("cpu", dtype).contiguous() for key, video in views.items()}


def tokens_of(parts: Iterable[Part], vae: Any, flip: bool, dtype: torch.dtype) -> dict[str, Tensor] | str:
    """Returns one video's tokens, of the mirrored one too, or why the video does not decode."""
    views = _whole(parts, vae, flip)
    if isinstance(views, str):
        return views
    kept = stored(vae.n_codes)
    return {"tokens" + key: vae.tokens(video)[0].to(kept).contiguous() for key, video in views.items()}


def _whole(parts: Iterable[Part], vae: VAE, flip: bool) -> dict[str, Tensor] | str:
    """Returns a video (1, F, 3, S, S) in [-1, 1] and its mirror image, or why there is none."""
    pieces: list[Tensor] = []
    reason = ""
    for _, frames in parts:
        if isinstance(frames, str):
            reason = reason or frames
        else:
            pieces.append(frames)
    if reason:
        return reason
    video = torch.cat(pieces)
    kept = len(video) // vae.frame_factor * vae.frame_factor
    if not kept:
        return f"a video of {len(video)} frames must have at least {vae.frame_factor}"
    video = normalise(video[:kept])[None]
    return {"": video, "_flip": video.flip(-1)} if flip else {"": video}
