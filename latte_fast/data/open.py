"""Opens a data set from its configuration."""

from typing import TYPE_CHECKING

from latte_fast.data.config import DataConfig
from latte_fast.data.shapes import Shapes

if TYPE_CHECKING:
    from latte_fast.data.clips import Clips
    from latte_fast.data.latents import Latents
    from latte_fast.data.sounds import Sounds
    from latte_fast.data.token_clips import TokenClips


def open_dataset(
    config: DataConfig, frames: int, size: int, images: int = 0
) -> "Shapes | Clips | Latents | Sounds | TokenClips":
    """Opens a data set whose item `dataset[(epoch, index)]` is a function of (config.seed, epoch, index).

    An item holds "video" (frames + images, 3, size, size) float32 in [-1, 1], "latent", scaled, or "tokens"; "label"
    when the set has classes, and "image_labels" (images,) too in joint training. With config.text, labels are numbers
    of captions.

    Args:
        config: configuration of the data set.
        frames: number of frames in a clip.
        size: height and width in pixels.
        images: number of single pictures after each clip, for joint training.
    """
    for name, value, least in (("frames", frames, 1), ("size", size, 1), ("images", images, 0)):
        if value < least:
            raise ValueError(f"open_dataset: {name} must be at least {least}, got {value}")
    texts = None
    if config.text:
        from latte_fast.data.text import Texts

        texts = Texts(config.text)
    if config.kind == "shapes":
        how = (config.outlines, texts, config.endless, config.colours)
        return Shapes(config.clips, frames, size, config.seed, images, *how)
    if config.kind == "latents":
        from latte_fast.data.latents import Latents

        return Latents(config, frames, size, images, texts)
    if config.kind == "tokens":
        from latte_fast.data.token_clips import TokenClips

        if images or texts is not None:
            got = f"{images} images" if images else f"captions of {config.text}"
            raise ValueError(f"tokens: clips must have neither images nor captions, got {got}")
        return TokenClips(config, frames, size)
    if config.kind == "sounds":
        from latte_fast.data.sounds import Sounds

        if images or texts is not None:
            got = f"{images} images" if images else f"captions of {config.text}"
            raise ValueError(f"sounds: clips must have neither images nor captions, got {got}")
        return Sounds(config, frames, size)
    if config.image_path and not images:
        raise ValueError(f"open_dataset: images must be at least 1 to take any of {config.image_path}, got 0")
    # these load PyAV, which moving shapes and latents do without
    from latte_fast.data.clips import Clips
    from latte_fast.data.sources import open_sources

    return Clips(open_sources(config), config, frames, size, images, texts)
