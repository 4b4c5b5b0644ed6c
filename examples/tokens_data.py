"""Tokens of long films, which the transformers of tokens_shapes.py are trained on, a part of a film at a time.

The first latent frame of a clip that is encoded by itself comes of a still picture, as the encoder repeats what lies at
the edge. A long film goes on from latent frames that have others before them. So films are encoded as a whole, as
`latte-fast encode --tokens` encodes those of files, and the latent frames at their ends are left out.
"""

from pathlib import Path

import torch
from tokens_films import ShapeFilms

from latte_fast.cli.demo import NAMES
from latte_fast.codecs.vqgan import VQGANCodec
from latte_fast.data.shards import write
from latte_fast.data.tokens import TOKENS, stored
from latte_fast.media.pixels import normalise

FRAMES, EDGE = 64, 4  # frames of a film, and latent frames that are left out at each end
SHARD, AT_ONCE = 512, 16


@torch.no_grad()
def write_tokens(folder: Path, codec: VQGANCodec, shapes: ShapeFilms, films: int) -> Path:
    """Writes the tokens of films of moving shapes, a class after the other, or goes on where it was stopped."""
    kept = FRAMES // codec.frame_factor - 2 * EDGE
    digest = f"shapes-{FRAMES}-{EDGE}-{shapes.colours}"
    index = TOKENS.begun(folder, resume=True) or {
        "version": TOKENS.version, "kind": "shapes", "size": shapes.size, "every": 1, "flip": False, "dtype": "float16",
        "vae": codec.name, "channels": codec.channels, "factor": codec.factor, "random": codec.random,
        "classes": NAMES, "videos": films, "digest": digest, "frame_factor": codec.frame_factor,
        "fingerprint": codec.fingerprint, "n_codes": codec.n_codes, "tokens": True, "done": 0, "complete": False,
        "shards": [], "clips": [], "broken": [],
    }  # fmt: skip
    if (index["fingerprint"], index["videos"], index["digest"]) != (codec.fingerprint, films, digest):
        raise SystemExit(f"tokens_shapes: {folder} holds tokens of another VQGAN or of other films; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    while not index["complete"]:
        numbers = range(index["done"], min(index["done"] + SHARD, films))
        shard = {}
        for first in range(numbers.start, numbers.stop, AT_ONCE):
            some = range(first, min(first + AT_ONCE, numbers.stop))
            tokens = codec.tokens(normalise(shapes.films(some, FRAMES)))[:, EDGE:-EDGE].to(stored(codec.n_codes))
            shard |= {f"{i}/tokens": film.contiguous() for i, film in zip(some, tokens, strict=True)}
        index["clips"] += [[str(i), i % len(NAMES), kept, len(index["shards"])] for i in numbers]
        write(folder, index, shard, numbers.stop, numbers.stop == films)
    return folder
