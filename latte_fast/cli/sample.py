"""latte-fast sample."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from latte_fast.cli.endings import sentence
from latte_fast.distributed.ranks import Ranks, start
from latte_fast.integrations.latte_pipeline import sample_text
from latte_fast.integrations.long_prompts import sample_prompts
from latte_fast.long_films.request import LongOptions, LongRequest
from latte_fast.long_films.sample import sample_long
from latte_fast.modules.sequence import ParallelConfig
from latte_fast.quantization.convert import quantize_or_refuse
from latte_fast.runs.load import load
from latte_fast.runs.plan import load_plan, plan_path
from latte_fast.runs.tokens import is_token_run
from latte_fast.sampling.files import NAMES
from latte_fast.sampling.request import Request, TextRequest, read_prompts
from latte_fast.sampling.sample import sample as draw
from latte_fast.token_films.sample import sample_tokens
from latte_fast.token_films.source import TokenOptions
from latte_fast.training.folder import ema_is_noise

# defaults in --help of flags that are None unless given, as they are refused where they would have no effect
DDIM, EMA, FIFTY = (tyro.conf.arg(help_behavior_hint=f"(default: {name})") for name in ("ddim", "ema", "50"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sample(
    path: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PATH]")] = None,
    out: str = "samples",
    classes: tuple[str, ...] = (),
    samples: Annotated[int | None, tyro.conf.arg(aliases=["--count"])] = None,
    batch: int = 4,
    seed: int = 0,
    steps: Annotated[int | None, FIFTY] = None,
    method: Annotated[Literal["ddpm", "ddim", "dpm++", "unipc", "euler", "heun"] | None, DDIM] = None,
    quality: str = "exact",
    plan: Path | None = None,
    guidance: Annotated[float | None, tyro.conf.arg(aliases=["--scale"])] = None,
    eta: float = 0.0,
    frames: int | None = None,
    long: Literal["fifo", "windows", "rollout"] | None = None,
    format: Literal["mp4", "gif", "png", "npz"] = "mp4",
    fps: float = 8.0,
    weights: Annotated[Literal["ema", "model"] | None, EMA] = None,
    vae: str | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    precision: Literal["fp8", "int8"] | None = None,
    precise_steps: tuple[str, ...] = (),
    pretrained: str | None = None,
    prompt: tuple[str, ...] = (),
    prompts: Path | None = None,
    audio: tuple[Path, ...] = (),
    negative: str = "",
    scheduler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    over_time: bool = True,
    temporal_decoder: bool = False,
    seed_rule: Literal["philox", "old"] = "philox",
    tokens: TokenOptions = TokenOptions(),  # noqa: B008  frozen
    long_films: LongOptions = LongOptions(),  # noqa: B008  frozen
    resume: bool = False,
    sequence: int = 1,
    cfg: Literal[1, 2] = 1,
) -> None:
    """Draw clips from a trained model or from text; several processes under torchrun write the same files as one.

    Films of any length: latte-fast sample RUN --frames 1024 --long fifo; of a token transformer's run without --long.

    Args:
        path: a run's folder, one of its checkpoints, or a .pt / .safetensors file under upstream's keys.
        out: folder for the files; existing samples are never overwritten.
        classes: names or numbers of classes, in turn over the samples; by default drawn by the seed.
        samples: number of samples, by default 8, or one for each prompt or sound.
        batch: number of samples in a batch; another number may change their last bits. Prompts are sampled one by one.
        seed: seed of all noise; sample i depends on the seed and i alone.
        steps: number of sampling steps; of fifo by default the next number above 50 that the model's frames divide.
        method: sampler of a trained model: ddpm, ddim, dpm++ (DPM-Solver++(2M)), unipc (UniPC-2), heun, or euler, which
            is ddim's step.
        quality: exact computes every step; lossless too, with other roundings; high and fast follow the plans that
            `latte-fast calibrate` has found.
        plan: file of another plan.
        guidance: scale of classifier-free guidance, 1 is none; by default 4, for text 7.5, without classes 1.
        eta: noise of ddim's steps, from 0 (none) to 1 (as much as ddpm).
        frames: number of frames in a clip; a trained model makes longer clips of overlapping windows.
        long: how films of any length are drawn, in memory that does not grow with it: by a queue (fifo), by windows
            that are blended at every step (windows), or clip after clip (rollout).
        format: kind of file: a film (mp4, gif) or an array (npz) for each sample, or a contact sheet (png) of a batch.
        fps: frames a second of the films.
        weights: the EMA of the weights (ema), or the weights themselves (model).
        vae: folder of a diffusers AutoencoderKL, or identity for pixels; by default the VAE of the run.
        dtype: data type of weights and activations.
        precision: fp8 or int8 runs the blocks' linear layers on 8-bit numbers (docs/8-bits.md), fp8 on a GPU with
            --dtype bf16; int8 halves the weights that a token transformer reads for a token.
        precise_steps: steps that run in 16 bits all the same, whose weights are then kept in memory beside those of 8
            bits: first, last, numbers, or ranges such as 0-4.
        pretrained: local folder of diffusers' LattePipeline (Latte-1), for any prompt; with `path`, a model trained on
            captions replaces the folder's transformer.
        prompt: what to show, in turn over the samples; without --pretrained, captions that the run was trained on.
        prompts: file with one prompt a line, which follow those of --prompt.
        audio: files with the sound of the film, in turn over the samples, for a token transformer trained with sounds.
        negative: negative prompt, which says what not to show.
        scheduler: diffusers' scheduler: DDIM, DDPM, EulerDiscrete, DPMSolverMultistep, ...; by default the folder's.
        height: height of the film in pixels, by default the model's.
        width: width of the film in pixels, by default the model's.
        over_time: whether frames attend to each other; --no-over-time is what upstream's image sampling does.
        temporal_decoder: decode with the folder's vae_temporal_decoder.
        seed_rule: how --pretrained draws noise: philox (by seed and sample number, as trained models do), or old (as
            version 0.1 did, until the next release).
        tokens: options of token transformers.
        long_films: options of --long.
        resume: go on with a stopped run of the same options into the same folder; samples that are there are kept.
        sequence: number of processes that share the tokens of each clip, instead of drawing clips of their own.
        cfg: 2 lets two processes, or two groups of them, compute a guided clip with and without its condition.
    """
    try:
        asked = (*prompt, *(read_prompts(prompts) if prompts is not None else ()))
        if path is None and pretrained is None:
            raise ValueError("sample: give a trained model's path, or --pretrained with --prompt")
        if pretrained is not None and not asked:
            raise ValueError("sample: --pretrained needs --prompt or --prompts")
        given: dict[str, Any] = {"eta": eta, "frames": frames, "seed": seed, "batch": batch, "steps": steps or 50}
        if steps is not None and steps < 1:
            raise ValueError(f"sample: steps must be at least 1, got {steps}")
        given |= {"format": format, "fps": fps}
        wanted, said = samples if samples is not None else len(asked) or len(audio) or 8, ""
        with start() as ranks:
            parallel = ParallelConfig(sequence, cfg)
            if pretrained is not None:
                several = {"sequence": sequence if sequence > 1 else None, "cfg": cfg if cfg > 1 else None}
                refuse("with --pretrained", **several)
                computes = "" if quality == "exact" else quality
                refuse("with --pretrained", classes=classes, method=method, vae=vae, plan=plan, quality=computes)
                refuse("with --pretrained", **{"precise-steps": precise_steps}, audio=audio)
                refuse("without a path", weights=weights if path is None else None)
                text = TextRequest(
                    prompts=asked,
                    negative=negative,
                    scheduler=scheduler,
                    height=height,
                    width=width,
                    frames=frames,
                    over_time=over_time,
                    temporal_decoder=temporal_decoder,
                    seed_rule=seed_rule,
                )
                scale = guidance if guidance is not None else 7.5
                request = Request(count=wanted, scale=scale, **given)
                trained = None if path is None else load(path, weights or "ema", ranks.device)
                if long is not None:
                    refuse("with --long", scheduler=scheduler, precision=precision, **{"no-over-time": not over_time})
                    refuse("with --long", **{"temporal-decoder": temporal_decoder, "seed-rule": seed_rule == "old"})
                    if frames is None:
                        raise ValueError("sample: frames must be given with --long, got none")
                    film = LongRequest(count=wanted, scale=scale, kind=long, options=long_films, **given)
                    text = replace(text, frames=None)
                    sample_prompts(pretrained, text, film, steps, out, ranks, DTYPES[dtype], trained, resume)
                    done(ranks, out, wanted)
                    return
                sample_text(pretrained, text, request, out, ranks, DTYPES[dtype], trained, resume, precision)
            else:
                over = {"no-over-time": not over_time, "temporal-decoder": temporal_decoder}
                over["seed-rule"] = seed_rule == "old"
                text_flags = {"scheduler": scheduler, "height": height, "width": width, "negative": negative}
                refuse("without --pretrained", **text_flags, **over)
                guided = guidance
                if guidance is None and asked:
                    guidance = 7.5
                assert path is not None
                refuse("with --quality", plan=plan if quality != "exact" else None)
                if is_token_run(path):
                    refuse("for a token transformer", **{"precise-steps": precise_steps})
                    refuse("for a token transformer", long=long, method=method, plan=plan)
                    refuse("for a token transformer", precision=None if precision == "int8" else precision)
                    refuse("for a token transformer", guidance=guided, quality="" if quality == "exact" else quality)
                    kept = {name: given[name] for name in ("frames", "seed", "batch", "format", "fps")}
                    asks = Request(count=wanted, **kept)
                    trained_tokens = (path, weights or "ema", vae, (*classes, *asked), DTYPES[dtype])
                    sample_tokens(*trained_tokens, tokens, asks, out, ranks, resume, precision, audio)
                    done(ranks, out, wanted, "" if precision is None else f", weights in {precision}")
                    return
                refuse("without a token transformer", tokens=None if tokens == TokenOptions() else tokens)
                refuse("without a token transformer", audio=audio)
                follows = plan or plan_path(path, quality)
                if follows:
                    said = f", by {follows}: {load_plan(follows).summary()}"
                run = load(path, weights or "ema", ranks.device)
                if asked and run.adapter.labels != "captions":
                    flag = "prompts" if prompts is not None else "prompt"
                    rule = "left out for a model without captions; --classes names its classes"
                    raise ValueError(f"sample: {flag} must be {rule}, got {asked[0]!r}")
                refuse("without --precision", **{"precise-steps": precise_steps if precision is None else ()})
                if precision is not None:
                    refuse("with --precision", sequence=sequence if sequence > 1 else None)
                    report = quantize_or_refuse(run.model.to(DTYPES[dtype]), precision, keep=bool(precise_steps))
                    said += f", {len(report.taken)} layers in {precision}, {report.memory}"
                noise = ema_is_noise(run.config, run.step) if run.step and weights != "model" else None
                if noise and ranks.first:
                    print(f"sample: {noise}", file=sys.stderr)
                if long is not None:
                    refuse("with --long", **{"precise-steps": precise_steps})
                    refuse("with --long", sequence=sequence if sequence > 1 else None, cfg=cfg if cfg > 1 else None)
                    if frames is None:
                        raise ValueError("sample: frames must be given with --long, got none")
                    kept = {name: given[name] for name in ("eta", "seed", "batch", "format", "fps")}
                    sample_long(
                        run,
                        long,
                        frames,
                        out=out,
                        classes=(*classes, *asked),
                        samples=wanted,
                        guidance=guidance,
                        steps=steps,
                        options=long_films,
                        vae=vae,
                        dtype=DTYPES[dtype],
                        ranks=ranks,
                        resume=resume,
                        method=method or "ddim",
                        plan=str(follows or ""),
                        lossless=quality == "lossless",
                        **kept,
                    )
                    done(ranks, out, wanted, said)
                    return
                refuse("without --long", long_films=None if long_films == LongOptions() else long_films)
                draw(
                    run,
                    classes=(*classes, *asked),
                    samples=wanted,
                    guidance=guidance,
                    method=method or "ddim",
                    plan=follows,
                    precise_steps=precise_steps,
                    quality="lossless" if quality == "lossless" else "exact",
                    vae=vae,
                    dtype=DTYPES[dtype],
                    out=out,
                    ranks=ranks,
                    resume=resume,
                    parallel=parallel if sequence * cfg > 1 else None,
                    **given,
                )
            done(ranks, out, wanted, said)
    except (ValueError, OSError) as error:
        raise SystemExit(sentence(error, "sample")) from None


def done(ranks: Ranks, out: str, count: int, said: str = "") -> None:
    if ranks.first:
        print(f"{out}: {count} samples, {NAMES} says what each shows{said}")


def refuse(where: str, **flags: object) -> None:
    """Raises ValueError for a flag that is set, as it would have no effect; a flag not set is None, False or empty."""
    for name, value in flags.items():
        if not (value is None or value is False or value in ("", ())):
            got = "" if value is True else f", got {value!r}"
            raise ValueError(f"sample: --{name} must be left out {where}{got}")
