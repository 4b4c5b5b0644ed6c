"""Small token transformers: ours and the oracle with the same random weights; folders of tokens, and runs on them."""

from pathlib import Path
from typing import Any

import torch

from latte_fast import TokenTransformer, reference, testing
from latte_fast.data import DataConfig
from latte_fast.data.shards import write
from latte_fast.data.tokens import TOKENS
from latte_fast.runs.config import TokenTraining
from latte_fast.training import OptimConfig, TrainConfig

# 6 tokens a frame; vocabulary of 3 conditions and 20 codes
FRAME, CODES, CONDITIONS = 6, 20, 3
TINY: dict[str, Any] = {"vocab_size": CONDITIONS + CODES, "block_size": 24, "n_layer": 2, "n_head": 2, "n_embd": 16}
# both ends of a block of five frames
GAP: dict[str, Any] = TINY | {"block_size": 5 * FRAME, "n_unmasked": FRAME}


def pair(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> tuple[TokenTransformer, Any]:
    """Returns ours in `dtype` and the oracle in float64, all weights drawn anew."""
    torch.manual_seed(seed)
    given = TINY | changes
    ours = testing.refill(TokenTransformer(**given)).eval()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if "pos_emb" in name or "tok_emb" in name:
                p.normal_()
            elif p.dim() == 2:
                p.normal_(std=p.shape[1] ** -0.5)
            elif p.dim() == 1 and name.endswith("weight"):
                p.copy_(1 + 0.1 * torch.randn_like(p))
            elif p.dim() == 1:
                p.copy_(0.1 * torch.randn_like(p))
    oracle = reference.token_transformer.TokenTransformer(**given)
    oracle.load_state_dict(ours.state_dict())
    return ours.to(dtype), oracle.double().eval()


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(TINY["vocab_size"], (batch, length), generator=source)


def write_tokens(
    folder: Path,
    clips: int = 11,
    frames: int = 9,
    side: int = 2,
    classes: tuple[str, ...] = ("a", "b", "c"),
    fingerprint: str = "0123456789abcdef",
    factor: int = 4,
    n_codes: int = 24,
) -> Path:
    """Writes a folder as `latte-fast encode --tokens --flip` does, of random tokens, two frames a latent frame."""
    source = torch.Generator().manual_seed(0)
    size = side * factor
    index = {"version": TOKENS.version, "kind": "videos", "size": size, "every": 1, "flip": True, "dtype": "float16",
             "vae": "vqgan", "channels": 4, "factor": factor, "random": False, "classes": list(classes),
             "videos": clips, "digest": "0", "frame_factor": 2, "fingerprint": fingerprint, "n_codes": n_codes,
             "tokens": True, "done": 0, "complete": False, "shards": [], "clips": [], "broken": []}  # fmt: skip
    shard = {}
    for i in range(clips):
        drawn = torch.randint(n_codes, (frames, side, side), generator=source, dtype=torch.int16)
        shard |= {f"{i}.mp4/tokens": drawn, f"{i}.mp4/tokens_flip": drawn.flip(-1).contiguous()}
        index["clips"].append([f"{i}.mp4", i % len(classes) if classes else None, frames, 0])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, index, shard, clips, True)
    return folder


def tiny_tokens_run(out: str | Path, shards: str | Path = "", **changes: Any) -> TrainConfig:
    """Returns a run on eleven clips of tokens, which are written beside it where `shards` names none."""
    folder = Path(shards or Path(out).parent / "token-shards")
    if not (folder / "index.json").is_file():
        write_tokens(folder)
    given: dict[str, Any] = {
        "objective": "tokens",
        "tokens": TokenTraining(n_layer=2, n_head=2, n_embd=16, noise=0.4),
        "data": DataConfig(kind="tokens", path=str(folder), interval=1, flip=True),
        "optim": OptimConfig(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01, clip=1.0, ema=0.9),
        "frames": 8,
        "size": 8,
        "steps": 12,
        "batch": 4,
        "log_every": 1,
        "save_every": 4,
    }
    return TrainConfig(out=str(out), **{**given, **changes})
