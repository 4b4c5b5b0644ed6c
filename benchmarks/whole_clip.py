"""A whole clip decoded at batch 1: ours, a bare read of the same weights, and the authors' cached loop, in one process.

python -m benchmarks.whole_clip --threads 2 --seconds 300 --results whole-clip.jsonl

A round goes through the clip in parts of 128 tokens, and each part is decoded by every contender before the next one
begins: so they meet the same state of the machine. A time is the sum over parts of the least time of all rounds. Each
round is a line of the file; another begins while there is time for it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.token_contenders import weights_of
from latte_fast import TokenTransformer, info, reference, testing
from latte_fast.models.tats.decoder import Decoder, causal_context

OURS, READ, AS_SHIPPED, IN_BF16 = (
    "ours",
    "a bare read of the weights",
    "the authors' loop, fp32",
    "the authors' loop, bf16",
)
TINY = {"vocab_size": 64, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32}


class Contender(Protocol):
    """Goes through a clip from its start, some tokens at a time, and returns the logits of the last."""

    def begin(self, tokens: Tensor) -> Tensor: ...

    def go_on(self, tokens: Tensor) -> Tensor: ...


class Ours:
    def __init__(self, model: TokenTransformer):
        self.decoder = Decoder(model, 1, model.config.block_size)

    def begin(self, tokens: Tensor) -> Tensor:
        logits = self.decoder.start(causal_context(tokens[:, :1]))
        return self.go_on(tokens[:, 1:]) if tokens.shape[1] > 1 else logits

    def go_on(self, tokens: Tensor) -> Tensor:
        for token in tokens.unbind(1):
            logits = self.decoder.step(token)
        return logits


class Authors:
    """Joins all keys and values anew at each step."""

    def __init__(self, model: Any):
        self.model = model

    def begin(self, tokens: Tensor) -> Tensor:
        self.past, self.count = None, 0
        return self.go_on(tokens)

    def go_on(self, tokens: Tensor) -> Tensor:
        for token in tokens.unbind(1):
            logits, self.past = self.model.with_past(token[:, None], torch.tensor([self.count]), self.past)
            self.count += 1
        return logits[:, -1]


class Read:
    """Sums the bits of all weights of a step as 64-bit numbers, once a token."""

    def __init__(self, model: TokenTransformer):
        whole = torch.cat([w.flatten().view(torch.uint8) for w in weights_of(model)])
        self.words = whole[: len(whole) // 8 * 8].view(torch.int64)

    def begin(self, tokens: Tensor) -> Tensor:
        return self.go_on(tokens)

    def go_on(self, tokens: Tensor) -> Tensor:
        for _ in range(tokens.shape[1]):
            total = self.words.sum()
        return total


def contenders(sizes: dict[str, int]) -> dict[str, Contender]:
    torch.manual_seed(0)
    ours = TokenTransformer(**sizes).eval()
    # normal weights are drawn by the constructor; what it leaves at zero is drawn here, or nothing would be told apart
    with torch.no_grad():
        for p in ours.parameters():
            if not p.any():
                p.normal_(0, 0.02)
    found: dict[str, Contender] = {}
    for name, dtype in ((AS_SHIPPED, torch.float32), (IN_BF16, torch.bfloat16)):
        oracle = reference.token_transformer.TokenTransformer(**sizes).eval()
        oracle.load_state_dict(ours.state_dict())
        found[name] = Authors(oracle.to(dtype))
    ours = ours.to(torch.bfloat16)
    return {OURS: Ours(ours), READ: Read(ours), **found}


@torch.no_grad()
def one_round(runners: dict[str, Contender], tokens: Tensor, part: int) -> tuple[dict[str, list[float]], dict]:
    """Returns the seconds of every part, and the last logits, by contender."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    last: dict[str, Tensor] = {}
    for i, some in enumerate(tokens.split(part, 1)):
        for name, runner in runners.items():
            run: Callable[[Tensor], Tensor] = runner.go_on if i else runner.begin
            begin = time.perf_counter()
            last[name] = run(some)
            times[name].append(time.perf_counter() - begin)
    return times, last


def check(last: dict[str, Tensor]) -> None:
    """Raises unless ours is as near to the fp32 loop's last logits as the loop in bf16 is."""
    testing.assert_no_worse_than_torch("logits", last[OURS], last[IN_BF16], last[AS_SHIPPED])


def least(rounds: list[dict[str, list[float]]]) -> dict[str, float]:
    """Returns the seconds of a clip by contender: of every part the least of all rounds."""
    return {name: sum(map(min, zip(*(times[name] for times in rounds), strict=True))) for name in rounds[0]}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="number of threads")
    parser.add_argument("--seconds", type=float, default=300.0, help="time after which no round begins or may end")
    parser.add_argument("--rounds", type=int, default=5, help="largest number of rounds")
    parser.add_argument("--results", type=Path, default=Path("whole-clip.jsonl"), help="file of a line a round")
    parser.add_argument("--tiny", action="store_true", help="a model whose times mean nothing")
    given = parser.parse_args(arguments)
    begin = time.perf_counter()
    torch.set_num_threads(given.threads)
    sizes = TINY if given.tiny else {"vocab_size": 16384, "block_size": 1024}
    runners = contenders(sizes)
    tokens = torch.randint(sizes["vocab_size"], (1, sizes["block_size"]), generator=torch.Generator().manual_seed(1))
    part = sizes["block_size"] // 8
    one_round(runners, tokens[:, :2], 1)  # warms up
    rounds: list[dict[str, list[float]]] = []
    about = {"cpu": info.cpu(), "threads": given.threads, "torch": torch.__version__}
    while len(rounds) < given.rounds:
        since = time.perf_counter()
        times, last = one_round(runners, tokens, part)
        if not rounds:
            check(last)
        rounds.append(times)
        seconds = least(rounds)
        found = {"rounds": len(rounds), "seconds": seconds, **about,
                 "of_the_read": seconds[OURS] / seconds[READ],
                 "times_as_shipped": seconds[AS_SHIPPED] / seconds[OURS],
                 "times_in_bf16": seconds[IN_BF16] / seconds[OURS]}  # fmt: skip
        with given.results.open("a") as file:
            file.write(json.dumps(found | {"parts": times}) + "\n")
        print(json.dumps(found), flush=True)
        now = time.perf_counter()
        if now - begin + (now - since) > given.seconds:
            break
    return found


if __name__ == "__main__":
    main()
