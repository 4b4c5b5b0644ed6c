"""Makes a token transformer's run, and films of it, on one rank and two.

As a process: python -m tests.helpers.spread_tokens FOLDER.
"""

import json
import sys
from pathlib import Path

import torch

from latte_fast.models.tats.files import save_vqgan
from latte_fast.runs.codec import open_vqgan
from latte_fast.runs.log import LOG, read_log
from latte_fast.sampling.request import Request
from latte_fast.token_films.sample import sample_tokens
from latte_fast.token_films.source import TokenOptions
from latte_fast.training import Ranks, Trainer
from tests.helpers.forks import on_ranks
from tests.helpers.tiny_tokens import tiny_tokens_run, write_tokens
from tests.helpers.tiny_vqgan import pair

FOLDER = Path(sys.argv[1])


def train(name: str, count: int, **changes: object) -> None:
    config = tiny_tokens_run(FOLDER / name, FOLDER / "shards", steps=5, **changes)
    on_ranks(count, lambda ranks: Trainer(config, ranks, say=lambda text: None).run())


def films(name: str, count: int) -> None:
    request = Request(count=3, batch=1, frames=20)
    vqgan = str(FOLDER / "vqgan.safetensors")

    def one(ranks: Ranks) -> None:
        options = TokenOptions(top_k=9)
        sample_tokens(FOLDER / "one", "ema", vqgan, (), torch.float32, options, request, FOLDER / name, ranks)

    on_ranks(count, one)


def main() -> None:
    save_vqgan(pair(n_codes=24)[0], FOLDER / "vqgan.safetensors")
    write_tokens(FOLDER / "shards", fingerprint=open_vqgan(FOLDER / "vqgan.safetensors").fingerprint)
    # makes torch import its lazy modules before the forks; trains no step, which would start threads
    Trainer(tiny_tokens_run(FOLDER / "unused", FOLDER / "shards"))
    train("one", 1)
    train("two", 2)
    train("sharded", 2, parallel="fsdp")
    train("master", 1, precision="bf16-weights")
    train("sharded-master", 2, precision="bf16-weights", parallel="fsdp")
    films("films-one", 1)
    films("films-two", 2)
    logs = {path.name: read_log(path / LOG) for path in sorted(FOLDER.iterdir()) if (path / LOG).exists()}
    print(json.dumps(logs))


if __name__ == "__main__":
    main()
