"""Tokens on disk: a folder of shards that `latte-fast encode --tokens` wrote, each clip's tokens by its name."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latte_fast.data.index_checks import LATENT_FIELDS, Fields, check_latents, is_positive, is_size, is_text
from latte_fast.data.shards import INDEX, Contents

FIELDS: Fields = LATENT_FIELDS | {
    "tokens": ("true", lambda x: x is True),
    "fingerprint": ("text", is_text),
    "n_codes": ("a positive number", is_size),
    "frame_factor": ("a positive number of frames", is_size),
}
TOKENS = Contents("tokens", "encode", "videos", check_latents, FIELDS)
# of sounds, whose index says how many frames a second has
SOUND_TOKENS = Contents(
    "tokens", "encode-audio", "videos", check_latents, FIELDS | {"fps": ("a number above 0", is_positive)}
)


def stored(n_codes: int) -> torch.dtype:
    """Returns the smallest integer type on disk that holds every token."""
    return torch.int16 if n_codes <= 1 << 15 else torch.int32


class TokenFolder:
    """The clips of a folder of tokens: their names, labels and tokens, and the fingerprint of the VQGAN they are of."""

    def __init__(self, path: str | Path, contents: Contents = TOKENS) -> None:
        self.folder = Path(path)
        wrote = "encode-audio" if contents is SOUND_TOKENS else "encode --tokens"
        if not (self.folder / INDEX).is_file():
            raise ValueError(
                f"tokens: path must be a folder that `latte-fast {wrote}` wrote\n"
                f"  path/index.json\n  path/00000.safetensors ...\ngot {self.folder}, which has no {INDEX}"
            )
        index = TOKENS.finished(self.folder)
        if (index["kind"] == "sounds") != (contents is SOUND_TOKENS):
            what = "those of sounds" if index["kind"] == "sounds" else "those of films"
            raise ValueError(f"tokens: {self.folder} must hold what `latte-fast {wrote}` wrote, got {what}")
        # frames a second, of sounds
        self.fps = float(SOUND_TOKENS.finished(self.folder)["fps"]) if contents is SOUND_TOKENS else 0.0
        self.rows: list[list[Any]] = index["clips"]
        self.names = [row[0] for row in self.rows]
        self.labels = [row[1] for row in self.rows]
        self.classes: list[str] = index["classes"]
        self.fingerprint, self.vae = str(index["fingerprint"]), str(index["vae"])
        self.n_codes, self.factor, self.frame_factor = index["n_codes"], index["factor"], index["frame_factor"]
        self.flip: bool = index["flip"]
        self.size, self.every = index["size"], index["every"]
        self.shards = [self.folder / name for name, *_ in index["shards"]]

    def __len__(self) -> int:
        return len(self.rows)

    def check_fingerprint(self, fingerprint: str, name: str) -> None:
        """Raises ValueError unless the tokens are of the VQGAN with this fingerprint."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"tokens: vqgan must be the one that encoded {self.folder}, {self.vae} with fingerprint "
                f"{self.fingerprint}, got {name} with {fingerprint}"
            )

    def read(self, index: int, flipped: bool = False) -> Tensor:
        """Returns a clip's tokens, (t, h, w) int64."""
        name, _, _, shard = self.rows[index]
        try:
            with safe_open(self.shards[shard], "pt") as file:
                tokens = file.get_tensor(f"{name}/tokens{'_flip' if flipped else ''}").long()
        except (SafetensorError, OSError) as error:
            raise RuntimeError(f"tokens: {self.shards[shard]}: {name} can't be read: {error}") from error
        if tokens.dim() != 3 or int(tokens.min()) < 0 or int(tokens.max()) >= self.n_codes:
            raise ValueError(f"tokens: {name} must be (t, h, w) in 0 .. {self.n_codes - 1}, got {tuple(tokens.shape)}")
        return tokens
