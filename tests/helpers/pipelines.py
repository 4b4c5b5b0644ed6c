"""A complete diffusers LattePipeline of tiny random parts; importing this file skips tests without diffusers."""

from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {"num_attention_heads": 3, "attention_head_dim": 24, "num_layers": 2, "sample_size": 8}
SMALL |= {"cross_attention_dim": 72, "caption_channels": 40, "video_length": 3}
# diffusers' own defaults construct another model
PUBLISHED = {"in_channels": 4, "out_channels": 8, "attention_bias": True, "patch_size": 2, "norm_eps": 1e-6}
PUBLISHED |= {"activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single"}
PUBLISHED |= {"norm_elementwise_affine": False}


def transformer(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.LatteTransformer3DModel(**SMALL | PUBLISHED | kwargs).eval()


def tokenizer(vocabulary: list[tuple[str, float]]) -> Any:
    if int(transformers.__version__.split(".")[0]) >= 5:
        return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    # before, T5's took files alone
    from tokenizers import Tokenizer, models, pre_tokenizers

    split = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    split.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=split, model_max_length=512, **names)


def pipeline(**kwargs: Any) -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.5)]
    vocabulary += [("\u2581" + c, -2.0) for c in letters] + [(c, -3.0) for c in letters]
    torch.manual_seed(1)
    text = transformers.T5Config(vocab_size=64, d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    vae = diffusers.AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(8, 8), norm_num_groups=4, sample_size=16
    )
    pipe = diffusers.LattePipeline(
        tokenizer=tokenizer(vocabulary),
        text_encoder=transformers.T5EncoderModel(text).eval(),
        vae=vae.eval(),
        transformer=transformer(**kwargs),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe: Any, prompt: Any = "a dog runs", **kwargs: Any) -> torch.Tensor:
    """Samples videos (B, F, 3, H, W) in [0, 1]."""
    defaults = {"num_inference_steps": 4, "height": 16, "width": 16, "video_length": 3, "clean_caption": False}
    noise = torch.Generator().manual_seed(1)
    return pipe(prompt, output_type="pt", generator=noise, **defaults | kwargs).frames
