"""Whole pipelines: sampling, callbacks, batches, folders, data types, and caches by the pipeline's own time step."""

import tempfile
from typing import Any

import torch

from tests.helpers.pipelines import diffusers, pipeline, video
from tests.helpers.suite.kinds import Kind, Missing, check


def near(a: Any, b: Any, limit: float = 1e-4) -> None:
    assert a.shape == b.shape and (a - b).abs().max() <= limit, f"{(a - b).abs().max():.2e}"


@check("sampling, batches, guidance, images")
def sampling(kind: Kind) -> None:
    pipe, theirs = kind.pipeline(), pipeline()
    want = video(theirs)
    assert want.std() > 0.01
    near(video(pipe), want)
    near(video(pipe, ["a dog runs", "rain"]), video(theirs, ["a dog runs", "rain"]))
    near(video(pipe, guidance_scale=1.0), video(theirs, guidance_scale=1.0))
    near(video(pipe, video_length=1), video(theirs, video_length=1))
    near(video(pipe, num_images_per_prompt=2), video(theirs, num_images_per_prompt=2))


@check("callbacks, output types, prompt embeddings")
def calls(kind: Kind) -> None:
    pipe = kind.pipeline()
    seen: list[int] = []

    def zero(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert set(tensors) <= set(pipe._callback_tensor_inputs)
        seen.append(i)
        return {"latents": torch.zeros_like(tensors["latents"])}

    names = pipe._callback_tensor_inputs
    out = video(pipe, callback_on_step_end=zero, callback_on_step_end_tensor_inputs=names, num_inference_steps=2)
    assert seen == [0, 1] and out.isfinite().all()
    if not diffusers.__version__.startswith("0.32"):  # which knows this type, and refuses it
        latent = pipe("rain", num_inference_steps=1, height=16, width=16, video_length=3, output_type="latent",
                      clean_caption=False).frames  # fmt: skip
        assert latent.shape == (1, 4, 3, 8, 8)
    embeds, negative = pipe.encode_prompt("rain", clean_caption=False)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative, "negative_prompt": None}
    near(video(pipe, None, mask_feature=False, **given), video(pipeline(), None, mask_feature=False, **given))


@check("pipelines saved, loaded, with `transformer=`")
def folders_of_pipelines(kind: Kind) -> None:
    pipe = kind.pipeline()
    want = video(pipeline())
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        near(video(quiet(diffusers.LattePipeline.from_pretrained(folder))), want)
        near(video(quiet(diffusers.DiffusionPipeline.from_pretrained(folder))), want)
        model = kind.load(f"{folder}/transformer")
        again = quiet(diffusers.LattePipeline.from_pretrained(folder, transformer=model))
        assert again.transformer is model
        near(video(again), want)
        pipe.save_pretrained(folder, variant="fp16")
        near(video(quiet(diffusers.LattePipeline.from_pretrained(folder, variant="fp16"))), want)


@check("data types of pipelines, also as a dict")
def dtypes_of_pipelines(kind: Kind) -> None:
    pipe = kind.pipeline().to(torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16 and video(pipe).isfinite().all()
    with tempfile.TemporaryDirectory() as folder:
        kind.pipeline().save_pretrained(folder)
        given = {"transformer": torch.bfloat16, "default": torch.float32}
        try:
            again = diffusers.LattePipeline.from_pretrained(folder, torch_dtype=given)
        except (TypeError, AttributeError):
            raise Missing(f"diffusers {diffusers.__version__} takes no dict of data types") from None
    if not isinstance(again.transformer.dtype, torch.dtype) or again.vae.dtype != torch.float32:
        raise Missing("no dict of data types")
    assert kind.finish(again).transformer.dtype == torch.bfloat16


@check("caches in a pipeline: hooks, states, reset")
def caches_of_pipelines(kind: Kind) -> None:
    if not hasattr(diffusers, "PyramidAttentionBroadcastConfig"):
        raise Missing(f"diffusers {diffusers.__version__} has no caches")
    wanted = {"spatial": 2, "temporal": 2, "cross": 2}
    pipe, theirs = kind.pipeline(), pipeline()
    for each in (pipe, theirs):
        ranges = {f"{name}_attention_block_skip_range": 2 for name in wanted}
        ranges["current_timestep_callback"] = lambda each=each: each._current_timestep
        each.transformer.enable_cache(diffusers.PyramidAttentionBroadcastConfig(**ranges))
    hooks = [m._diffusers_hook.get_hook("pyramid_attention_broadcast") for m in pipe.transformer.modules()
             if getattr(m, "_diffusers_hook", None) is not None]  # fmt: skip
    hooks = [hook for hook in hooks if hook is not None]
    assert len(hooks) == sum(wanted.values()) and all(hook.state.cache is None for hook in hooks)

    def counted(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert all(hook.state.cache is not None and hook.state.iteration == i + 1 for hook in hooks)
        return {}

    near(video(pipe, callback_on_step_end=counted), video(theirs))
    assert all(hook.state.cache is None and hook.state.iteration == 0 for hook in hooks)
    pipe.transformer.disable_cache()
    near(video(pipe), video(pipeline()))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
