"""Checks of a token transformer's run, before its data is opened."""

from pathlib import Path

from latte_fast.models.config import require
from latte_fast.runs.codec import is_vqgan
from latte_fast.runs.config import TrainConfig


def check_tokens(config: TrainConfig) -> None:
    """Refuses settings that a token transformer cannot be trained with."""
    rule = "a set of films, shapes or tokens for a token transformer"
    require(config.data.kind != "latents", "data.kind", rule, config.data.kind)
    require(
        not config.data.text, "data.text", "empty for a token transformer, which has tokens.captions", config.data.text
    )
    require(config.images == 0, "images", "0 for a token transformer, which sees whole clips", config.images)
    require(not config.fp8, "fp8", "off for a token transformer", config.fp8)
    require(not config.compile, "compile", "off for a token transformer", config.compile)
    rule = "tokens where sounds are given, by the names of the encoded clips"
    require(not config.tokens.sound or config.data.kind == "tokens", "data.kind", rule, config.data.kind)
    rule = "tokens where captions are given, by the names of the encoded clips"
    require(not config.tokens.captions or config.data.kind == "tokens", "data.kind", rule, config.data.kind)
    shown = config.sample.every > 0
    rule = "0 with fsdp, as a token transformer draws from whole weights"
    require(not shown or config.parallel != "fsdp", "sample.every", rule, config.sample.every)
    drawn = config.tokens.every > 1 or config.tokens.gap
    rule = "0 for one of a hierarchy's two models, which draws no clip alone"
    require(not shown or not drawn, "sample.every", rule, config.sample.every)
    if shown or config.data.kind != "tokens":
        needs = "decodes what is drawn" if config.data.kind == "tokens" else "makes the clips' tokens"
        found = Path(config.vae).exists() and is_vqgan(config.vae)
        require(found, "vae", f"a VQGAN's file or run, which {needs}", config.vae)
    path = config.pretrained
    require(path is None or Path(path).is_file(), "pretrained", "an existing file", path)
