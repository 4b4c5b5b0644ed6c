"""Draws films from the run of a token transformer in one call."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from latte_fast.codecs import spectrum
from latte_fast.codecs.clip_bpe import ClipBPE
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.distributed.ranks import Ranks
from latte_fast.runs.codec import is_vqgan, open_vqgan
from latte_fast.runs.tokens import TrainedTokens, load_tokens
from latte_fast.sampling.request import Request
from latte_fast.token_films.source import TokenOptions, TokenSource


def sample_tokens(
    path: str | Path,
    weights: str,
    vae: str | None,
    classes: Sequence[str],
    dtype: torch.dtype,
    options: TokenOptions,
    request: Request,
    out: str | Path,
    ranks: Ranks,
    resume: bool = False,
    precision: str | None = None,
    audio: Sequence[str | Path] = (),
) -> None:
    """Draws films and writes them to the folder `out`; every rank calls this.

    Args:
        path: run of the transformer that draws films or their key frames, or one of its checkpoints.
        weights: "ema" or "model".
        vae: VQGAN of the tokens, a file or a run; by default that of the run.
        classes: names or numbers of classes, in turn over the samples; by default drawn by the seed; or prompts, for a
            model with captions.
        dtype: data type of weights and activations of the transformers; the VQGAN decodes in fp32.
        options: how films are drawn.
        request: how many films, of how many frames.
        out: folder for the files.
        ranks: processes that share the work.
        resume: whether to go on with the same request into the same folder, keeping what is there.
        precision: "int8" for weights of 8 bits.
        audio: files with sound, in turn over the samples, for a model that hears them.
    """
    # imported here because it loads PyAV, which tokens do not need
    from latte_fast.sampling.files import sample_files

    source = open_tokens(path, weights, vae, classes, dtype, options, ranks.device, precision, audio)
    sample_files(source, replace(request, steps=source.steps(request)), out, ranks, resume=resume)


def open_tokens(
    path: str | Path,
    weights: str = "ema",
    vae: str | None = None,
    classes: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    options: TokenOptions = TokenOptions(),  # noqa: B008  frozen
    device: torch.device | str = "cpu",
    precision: str | None = None,
    audio: Sequence[str | Path] = (),
) -> TokenSource:
    """Opens a token transformer's run with its VQGAN, and with the model that fills its gaps where it has one.

    `audio` are files with sound, in turn over the samples, for a model that hears them.
    """
    trained = in_dtype(load_tokens(path, weights, device, precision), dtype)
    between = in_dtype(load_tokens(options.between, weights, device, precision), dtype) if options.between else None
    codec = codec_of(vae or trained.config.vae, device)
    bpe = ClipBPE(options.bpe or trained.config.tokens.bpe) if trained.layout.bpe else None
    sounds = sounds_of(audio, trained, options.sound_vae or trained.config.tokens.sound_vae, device)
    return TokenSource(trained, codec, options, classes, between, bpe, sounds)


def sounds_of(
    audio: Sequence[str | Path], trained: TrainedTokens, path: str, device: torch.device | str
) -> list[Tensor]:
    """Returns the tokens of files with sound, (t, n) each, as the model hears them."""
    layout = trained.layout
    if not layout.sound or not audio:
        return [torch.zeros(0, 0)] * len(audio)  # which TokenSource refuses, naming what is wrong
    # imported here because it loads PyAV, which other models do without
    from latte_fast.media.sound import SoundError, read_sound

    if not path or not Path(path).exists() or not is_vqgan(path):
        rule = f"the VQGAN of sounds whose tokens the model knows, with fingerprint {layout.sound}"
        raise ValueError(f"sample: tokens.sound_vae must be {rule}, got {path or 'none'}")
    codec = open_vqgan(path, device)
    if codec.fingerprint != layout.sound:
        rule = f"the one of the training's sounds, with fingerprint {layout.sound}"
        raise ValueError(f"sample: tokens.sound_vae must be {rule}, got {path} with {codec.fingerprint}")
    found = []
    for file in audio:
        try:
            sound, rate = read_sound(file)
        except SoundError as error:
            raise ValueError(f"sample: audio must be files with sound, got {error}") from error
        count = spectrum.count_of(len(sound), rate, layout.fps, codec.frame_factor)
        found.append(codec.tokens(spectrum.pictures(sound, rate, layout.fps, count)[None])[0].flatten(1))
    return found


def in_dtype(trained: TrainedTokens, dtype: torch.dtype) -> TrainedTokens:
    trained.model.to(dtype)
    return trained


def codec_of(path: str, device: torch.device | str) -> VQGANCodec:
    if not Path(path).exists() or not is_vqgan(path):
        rule = "the file or run of the VQGAN whose tokens the model knows"
        raise ValueError(f"sample: vae must be {rule}, got {path}; give --vae")
    return open_vqgan(path, device)
