"""Text encoders: the T5 in a pipeline's local folder, called as the pipeline calls it."""

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

# number of tokens after which upstream and the pipeline cut a caption
TOKENS = 120


class TextEncoder(Protocol):
    """Embeds captions as `tokens` tokens of `channels` channels: shorter captions are padded, longer ones cut."""

    name: str
    channels: int
    tokens: int

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Returns (B, tokens, channels) float32, padding embedded too, and bool (B, tokens), False for padding."""
        ...

    def surplus(self, caption: str) -> int:
        """Returns the number of a caption's tokens beyond `tokens`, which are cut."""
        ...


class T5:
    """A T5 encoder and its tokenizer."""

    def __init__(self, tokenizer: Any, network: Any, name: str, device: torch.device | str, dtype: torch.dtype) -> None:
        self.tokenizer, self.name, self.device, self.tokens = tokenizer, name, device, TOKENS
        self.network = network.to(device, dtype).eval().requires_grad_(False)
        self.channels = int(network.config.d_model)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        given = self.tokenizer(
            [normalise_prompt(caption) for caption in captions],
            padding="max_length",
            max_length=self.tokens,
            truncation=True,
            return_attention_mask=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).to(self.device)
        hidden = self.network(given.input_ids, attention_mask=given.attention_mask)[0]
        return hidden.float().cpu(), given.attention_mask.bool().cpu()

    def surplus(self, caption: str) -> int:
        return max(0, len(self.tokenizer(normalise_prompt(caption), add_special_tokens=True).input_ids) - self.tokens)


def normalise_prompt(caption: str) -> str:
    """Lower-cases and strips a caption, as the pipeline does with a prompt that it does not clean."""
    return caption.lower().strip()


def open_text_encoder(
    folder: str | os.PathLike, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> T5:
    """Opens the T5 in tokenizer/ and text_encoder/ of a pipeline's local folder; nothing is downloaded."""
    path = Path(folder)
    missing = [name for name in ("tokenizer", "text_encoder") if not (path / name).is_dir()]
    if missing:
        raise ValueError(f"encode-text: pretrained must be a folder with {missing[0]}/ in it, got {path}")
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError as error:
        raise RuntimeError("encode-text: needs transformers; pip install 'latte_fast[t2v]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path / "tokenizer"), local_files_only=True)
        network = T5EncoderModel.from_pretrained(str(path / "text_encoder"), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"encode-text: pretrained must hold a T5, got {path}: {error}") from error
    return T5(tokenizer, network, path.name, device, dtype)
