"""What the tokens of a run stand for, from its data and from the VQGAN that makes them."""

from typing import Any

from latte_fast.codecs.clip_bpe import ClipBPE
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.data.token_clips import TokenClips
from latte_fast.data.tokens import TokenFolder
from latte_fast.models.config import require
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.tokens import TokenLayout


def layout_of(
    config: TrainConfig,
    dataset: Any,
    codec: VQGANCodec | None,
    classes: int,
    bpe: ClipBPE | None = None,
    sounds: TokenFolder | None = None,
) -> TokenLayout:
    """Returns what the tokens of a run stand for, from its stored tokens or from the VQGAN that makes them.

    Args:
        config: configuration of the run.
        dataset: the clips; stored tokens know what their VQGAN does.
        codec: VQGAN of the clips, where it is open.
        classes: number of classes that the model is given.
        bpe: vocabulary of captions.
        sounds: tokens of the clips' sounds.
    """
    stored = isinstance(dataset, TokenClips)
    known: Any = dataset if stored else codec
    if stored and codec is not None:
        dataset.tokens.check_fingerprint(codec.fingerprint, config.vae)
    factor, frame_factor, options = known.factor, known.frame_factor, config.tokens
    require(config.size % factor == 0, "size", f"a multiple of the VQGAN's {factor}", config.size)
    require(config.frames % frame_factor == 0, "frames", f"a multiple of the VQGAN's {frame_factor}", config.frames)
    frames = len(range(0, config.frames // frame_factor, options.every))
    least = 3 if options.gap else 2 if options.every > 1 or options.noise else 1
    rule = f"at least {least} latent frames of {frame_factor}, {options.every} apart"
    require(frames >= least, "frames", rule, config.frames)
    whole = config.size // factor
    rule = f"at most the {whole} codes of a frame of {config.size} pixels"
    require(options.side <= whole, "tokens.side", rule, options.side)
    side = options.side or whole
    conditions = bpe.size if bpe else sounds.n_codes if sounds is not None else classes
    words = options.words if bpe else 0
    if sounds is not None:
        words = frames * dataset.sounds[0].shape[1]
    return TokenLayout(
        frames=frames,
        side=side,
        n_codes=int(known.n_codes),
        conditions=conditions,
        every=options.every,
        gap=options.gap,
        fingerprint=str(known.fingerprint),
        frame_factor=int(frame_factor),
        factor=int(factor),
        words=words,
        bpe=bpe.digest if bpe else "",
        sound=sounds.fingerprint if sounds is not None else "",
        fps=sounds.fps if sounds is not None else 0.0,
        whole=whole if side < whole else 0,
    )
