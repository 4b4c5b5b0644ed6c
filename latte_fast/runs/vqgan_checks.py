"""Checks of a 3D-VQGAN's run, before its data is opened."""

from pathlib import Path

from latte_fast.codecs.spectrum import BANDS, MOMENTS
from latte_fast.models.config import require
from latte_fast.runs.config import TrainConfig


def check_vqgan(config: TrainConfig) -> None:
    """Refuses settings that a 3D-VQGAN cannot be trained with."""
    rule = "a set of films, sounds or shapes for a VQGAN"
    require(config.data.kind != "latents", "data.kind", rule, config.data.kind)
    sounds, channels = config.data.kind == "sounds", config.vqgan.model.channels
    rule = "1 for sounds, and 3 for films"
    require(channels == (1 if sounds else 3), "vqgan.model.channels", rule, channels)
    require(not sounds or config.size == BANDS, "size", f"{BANDS} for sounds, as high as their pictures", config.size)
    require(not sounds or not config.eval.every, "eval.every", "0 for sounds, whose pictures no detector knows", True)
    require(not sounds or not config.vqgan.perceptual, "vqgan.perceptual", "left out for sounds", True)
    require(not config.data.text, "data.text", "empty for a VQGAN, which knows no captions", config.data.text)
    require(config.images == 0, "images", "0 for a VQGAN, which sees whole clips", config.images)
    require(not config.fp8, "fp8", "off for a VQGAN, which has no linear layers", config.fp8)
    require(not config.compile, "compile", "off for a VQGAN", config.compile)
    require(config.parallel != "fsdp", "parallel", "ddp or none for a VQGAN", config.parallel)
    rule = "fp32 or bf16 for a VQGAN, whose codes are averages in fp32"
    require(config.precision != "bf16-weights", "precision", rule, config.precision)
    time, *space = config.vqgan.model.downsample
    require(config.frames % time == 0, "frames", f"a multiple of the downsampling's {time}", config.frames)
    rule = f"at most the {MOMENTS} columns of a sound's picture"
    require(not sounds or space[1] <= MOMENTS, "vqgan.model.downsample", rule, space[1])
    for factor in space:
        require(config.size % factor == 0, "size", f"a multiple of the downsampling's {factor}", config.size)
    for name, value in (("pretrained", config.pretrained), ("vqgan.perceptual", config.vqgan.perceptual)):
        require(value is None or Path(value).is_file(), name, "an existing file", value)
