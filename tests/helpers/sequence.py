"""Ranks that share clips, against the same model alone.

python -m tests.helpers.sequence 2,3,4 prints, for each number of ranks, a line of JSON: errors, bytes, refusals; with
--link what its sockets moved.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from latte_fast import FlexLatte, Latte, LatteIMG, LatteT2V, sample, testing
from latte_fast.codecs.vae import Identity
from latte_fast.modules.sequence import ParallelConfig
from latte_fast.modules.stack_reuse import StackReuse
from latte_fast.ops import axis_exchange
from latte_fast.parallel_cost import Links, shared_cost
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import Trainer
from tests.helpers.forks import on_ranks
from tests.helpers.tiny_run import tiny

SMALL: dict[str, Any] = {
    "patch_size": 2, "in_channels": 4, "hidden_size": 32, "num_heads": 4, "depth": 4, "num_classes": 5,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "cross_attention_dim": 32,
    "caption_channels": 16,
}  # fmt: skip
LIMIT = 3e-6  # of the largest value, in fp32
Case = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]


def latte(frames: int, side: int, images: int = 0, **keywords: Any) -> Case:
    """A class-conditional Latte, its input's shape, and the call's keywords."""
    kind: Any = LatteIMG if images else FlexLatte if "layout" in keywords else Latte
    sizes = SMALL | {"input_size": 2 * side, "num_frames": frames, "extras": 2} | keywords
    call: dict[str, Any] = {"t": torch.tensor([7, 601]), "y": torch.tensor([1, 4])}
    if images:
        call |= {"y_image": torch.tensor([[0] * images, [3] * images]), "use_image_num": images}
    return lambda: kind(**sizes), (2, frames + images, 4, 2 * side, 2 * side), call


def text(frames: int, images: int = 0) -> Case:
    """A LatteT2V with a mask over captions of two lengths."""
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    states = torch.randn(2, 1 + images, 6, 16, generator=torch.Generator().manual_seed(5))
    call: dict[str, Any] = {"timestep": torch.tensor([7, 601]), "return_dict": False}
    if images:
        call |= {"use_image_num": images, "encoder_attention_mask": mask[:, None].expand(-1, 1 + images, -1).int()}
    else:
        states = states[:, 0]
        call["encoder_attention_mask"] = mask.int()
    make = lambda: LatteT2V(video_length=frames, **TEXT)  # noqa: E731
    return make, (2, 4, frames + images, 8, 8), call | {"encoder_hidden_states": states}


def by_frame(case: Case) -> Case:
    """Gives every frame and image of a case a time step of its own."""
    make, shape, call = case
    name, axis = ("timestep", 2) if "timestep" in call else ("t", 1)
    steps = torch.randint(0, 1000, (2, shape[axis]), generator=torch.Generator().manual_seed(6))
    return make, shape, call | {name: steps}


CASES: dict[str, Case] = {
    "16 frames, 16 patches": latte(16, 4),
    "17 frames, 25 patches": latte(17, 5),
    "5 frames, one clip at a time": latte(5, 4, time_pos="rope"),
    "joint": latte(5, 4, images=2),
    "text": text(5),
    "text, joint": text(5, images=2),
    "compression frames": latte(10, 4, patch_frames=2),
    "flexible density": latte(5, 8, layout="PP GSRD DD", depth=8, sides=(4, 5)),
    "variant 2": latte(5, 5, variant=2),
    "variant 2, joint": latte(5, 4, images=2, variant=2),
    "variant 3": latte(5, 5, variant=3),
    "variant 4": latte(5, 5, variant=4),
    "variant 3, joint": latte(5, 4, images=2, variant=3, depth=2),
    "variant 4, joint": latte(5, 4, images=2, variant=4, depth=2),
    "all tokens": latte(5, 4, conditioning="tokens"),
    "every block recomputed": latte(5, 4, recompute="block"),
    "a step a frame": by_frame(latte(5, 4)),
    "a step a frame, joint": by_frame(latte(5, 4, images=2)),
    "a step a frame, variant 3": by_frame(latte(5, 5, variant=3)),
    "a step a frame, all tokens": by_frame(latte(5, 4, conditioning="tokens")),
    "a step a frame, flexible density": by_frame(latte(5, 8, layout="PP GSRD DD", depth=8, sides=(4, 5))),
    "a step a frame, text": by_frame(text(5)),
}
DEFAULT = ("16 frames, 16 patches", "17 frames, 25 patches", "joint", "text, joint", "compression frames",
           "flexible density", "variant 2", "variant 4, joint", "all tokens", "a step a frame, text")  # fmt: skip
# whose tokens go in two pieces by default, too
IN_PIECES = ("17 frames, 25 patches", "joint")


def called(model: nn.Module, x: Tensor, call: dict[str, Any]) -> Tensor:
    out = model(x, **call)
    return out[0] if isinstance(out, tuple) else out


def errors(case: Case, pieces: int = 1) -> list[float]:
    """Returns the errors of the output and of the gradients that ranks together have, relative to one rank's."""
    make, shape, call = case
    torch.manual_seed(0)
    model: Any = testing.refill(make()).train()
    if hasattr(model, "y_embedder"):
        model.y_embedder.dropout_prob = 0.0
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    alone = called(model, x, call)
    upstream = torch.randn(alone.shape, generator=torch.Generator().manual_seed(2))
    alone.backward(upstream)
    wanted = {"x": x.grad} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    x.grad = None
    model.zero_grad(set_to_none=True)
    model.enable_parallelism(ParallelConfig(sequence=dist.get_world_size(), pieces=pieces))
    together = called(model, x, call)
    together.backward(upstream)
    model.parallel.sum_gradients(model)
    dist.all_reduce(x.grad)  # each rank's is that of its own frames
    got = {"x": x.grad} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    # the gradient of a bias of keys is zero but for rounding
    least = 1e-3 * max(largest(grad) for grad in wanted.values())
    grads = [largest(got[name] - wanted[name]) / max(largest(wanted[name]), least) for name in got]
    with torch.no_grad():
        half = called(model, x, call)
    assert largest(half - together) < 1e-5 * largest(together)
    # a step whose blocks are left out, on the sums of the step before
    reuse = StackReuse()
    with torch.no_grad(), reuse.attached(model):
        reuse.compute(0.0)
        assert largest(called(model, x, call) - alone) < LIMIT * largest(alone)
        reuse.reuse(1.0, 0)
        assert largest(called(model, x, call) - alone) < LIMIT * largest(alone)
    return [largest(together - alone) / largest(alone), max(grads)]


def compiled(case: Case) -> list[float]:
    """Returns the errors that blocks compiled without a graph break have, relative to the same ranks' uncompiled."""
    make, shape, call = case
    torch.manual_seed(0)
    model: Any = testing.refill(make()).eval()
    model.enable_parallelism(ParallelConfig(sequence=dist.get_world_size()))
    x, found = torch.randn(shape, generator=torch.Generator().manual_seed(1)), []
    for compiling in (False, True):
        for block in model.blocks if compiling else ():
            block.compile(fullgraph=True, backend="aot_eager")
        model.zero_grad(set_to_none=True)
        out = called(model, x, call)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)))
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((out.detach(), grads))
    (plain, wanted), (out, got) = found
    most = max(largest(grad) for grad in wanted)
    apart = max(largest(a - b) for a, b in zip(got, wanted, strict=True))
    return [largest(out - plain) / largest(plain), apart / most]


def largest(x: Tensor) -> float:
    return x.abs().max().item()


def exchanged(case: Case, pieces: int = 1) -> dict[str, Any]:
    """Returns how many bytes this rank sends to others in each exchange of a forward, and in gathering its output."""
    make, shape, call = case
    model: Any = make()
    model.enable_parallelism(ParallelConfig(sequence=dist.get_world_size(), pieces=pieces))
    exchange, gather = dist.all_to_all_single, axis_exchange.gather_into
    sent: list[int] = []
    gathered: list[int] = []

    def counting(out: Tensor, x: Tensor, out_counts: list[int], counts: list[int], **given: Any) -> Any:
        sent.append(sum(counts) - counts[dist.get_rank()])
        return exchange(out, x, out_counts, counts, **given)

    def counting_too(out: Tensor, x: Tensor, group: Any) -> None:
        gathered.append(x.numel() * x.element_size() * (dist.get_world_size() - 1))
        gather(out, x, group)

    dist.all_to_all_single, axis_exchange.gather_into = counting, counting_too
    try:
        with torch.no_grad():
            called(model, torch.randn(shape), call)
    finally:
        dist.all_to_all_single, axis_exchange.gather_into = exchange, gather
    return {"bytes": sent, "blocks": len(model.blocks), "gathered": sum(gathered)}


def saved(case: Case, ranks: int) -> int:
    """Returns the bytes of activations that a forward keeps for its backward, parameters not counted."""
    make, shape, call = case
    model: Any = testing.refill(make())
    if ranks > 1:
        model.enable_parallelism(ParallelConfig(sequence=ranks))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        held = x.untyped_storage()
        if held.data_ptr() not in own:
            kept[held.data_ptr()] = held.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = called(model, torch.randn(shape), call)
    assert out.requires_grad  # the graph, and what it keeps, lives until here
    return sum(kept.values())


def refusals(ranks: Any) -> list[str]:
    """Returns what a rank is told of wrong degrees, and of inputs that differ between ranks."""
    make, shape, call = CASES["5 frames, one clip at a time"]
    said = []
    for config in (ParallelConfig(sequence=ranks.count + 1), object()):
        try:
            make().enable_parallelism(config)  # type: ignore[operator]
        except (ValueError, TypeError) as error:
            said.append(str(error))
    model: Any = make()
    own = torch.Generator().manual_seed(ranks.rank)
    for wrong in (torch.ones(shape)[:, : ranks.count - 1], torch.randn(shape, generator=own)):
        model.enable_parallelism(ParallelConfig(sequence=ranks.count))
        try:
            model(wrong, **call)
        except ValueError as error:
            said.append(str(error))
    return said


def trained(folder: Path, every: bool) -> dict[str, list[float]]:
    """Trains the same run alone and on ranks that share clips; returns the losses and gradient norms by run."""
    found = {}
    ways: dict[str, tuple[int, dict[str, Any]]] = {"alone": (1, {}), "two": (2, {"sequence": 2})}
    if every:
        ways |= {"eight": (8, {"sequence": 2}), "eight, sharded": (8, {"sequence": 2, "parallel": "fsdp"})}
    ways["four, sharded"] = (4, {"sequence": 2, "parallel": "fsdp"})
    for name, (count, how) in ways.items():
        config = replace(tiny(folder / name), frames=3, steps=20 if every else 6, save_every=3, **how)
        on_ranks(count, lambda ranks, config=config: Trainer(config, ranks, say=lambda text: None).run())
        found[name] = [line[key] for line in read_log(folder / name / LOG) for key in ("loss", "grad_norm")]
    return found


class Counted(Identity):
    """Counts the frames that a rank decodes."""

    def __init__(self, place: Path):
        super().__init__()
        self.place, self.frames = place, 0

    def decode(self, latent: Tensor) -> Tensor:
        self.frames += latent.shape[0] * latent.shape[1]
        self.place.write_text(str(self.frames))
        return super().decode(latent)


def sampled(folder: Path, every: bool) -> dict[str, Any]:
    """Samples the same files alone, by ranks that share tokens, by guided halves, and by both.

    Returns the number of films, the largest difference of pixels from those of one rank, the share of pixels that
    differ, and how many frames each rank decoded.
    """
    ways = {"tokens": (2, ParallelConfig(sequence=2)), "halves": (2, ParallelConfig(cfg=2))}
    ways |= {"both": (4, ParallelConfig(sequence=2, cfg=2))}
    if every:
        ways |= {"in pieces": (2, ParallelConfig(sequence=2, pieces=2))}
        ways |= {"both, and clips": (8, ParallelConfig(sequence=2, cfg=2))}
    found: dict[str, Any] = {}
    first = np.empty(0)
    for name, (count, config) in {"alone": (1, None), **ways}.items():
        out = folder / f"samples-{name}"
        given: dict[str, Any] = {"samples": 6, "batch": 2, "steps": 3, "out": out, "format": "npz", "progress": False}
        given["model"] = folder / "alone"

        def run(ranks: Any, name: str = name, given: Any = given, config: Any = config) -> None:
            sample(ranks=ranks, parallel=config, vae=Counted(folder / f"decoded-{name}-{ranks.rank}"), **given)

        on_ranks(count, run)
        films = np.stack([np.load(path)["video"] for path in sorted(out.glob("*.npz"))]).astype(float)
        first = films if config is None else first
        apart = np.abs(films - first)
        frames = [int((folder / f"decoded-{name}-{rank}").read_text()) for rank in range(count)]
        found[name] = [len(films), apart.max(), (apart > 0).mean(), frames]
    return found


def received() -> int:
    """Returns the bytes that have come over the loopback interface of this network namespace."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def over_the_link(counts: list[int]) -> None:
    """Prints what a forward moves between ranks by gloo's sockets, and what the arithmetic of `cost` says."""
    sizes = SMALL | {"input_size": 16, "num_frames": 16, "hidden_size": 256, "depth": 8, "extras": 2}
    x, call = torch.randn(2, 16, 4, 16, 16), {"t": torch.tensor([7, 601]), "y": torch.tensor([1, 4])}
    for count in counts:

        def run(ranks: Any, count: int = count) -> None:
            torch.set_num_threads(1)
            model: Any = Latte(**sizes)
            model.enable_parallelism(ParallelConfig(sequence=count))
            with torch.no_grad():
                model(x, **call)  # compares the inputs
                ranks.barrier()
                before = received()
                model(x, **call)
                ranks.barrier()
            counted = received() - before
            cost = shared_cost(model.config, 2, 16, 64, count, Links(1e9, 1e9), 1.0, bytes_each=4)
            if ranks.first:
                print(json.dumps({"ranks": count, "counted": counted, "simulated": count * cost.sent}), flush=True)

        on_ranks(count, run)


def main(counts: list[int], every: bool, folder: Path | None) -> None:
    for count in counts:
        found: dict[str, Any] = {}

        def run(ranks: Any, found: dict[str, Any] = found) -> None:
            torch.set_num_threads(1)
            for name in CASES if every else DEFAULT:
                found[name] = errors(CASES[name])
                if every or name in IN_PIECES:
                    found[f"{name}, in pieces"] = errors(CASES[name], pieces=2)
            even = CASES["16 frames, 16 patches"]
            found["exchanged"], found["pieces"] = exchanged(even), exchanged(even, pieces=2)
            found["saved"] = [saved(even, 1), saved(even, ranks.count)]
            for name in ("joint", "text", "variant 4") if every and ranks.count == 2 else ():
                found[f"{name}, compiled"] = compiled(CASES[name])
            found["refused"] = refusals(ranks)
            gathered: list[Any] = [None] * ranks.count
            dist.all_gather_object(gathered, found)
            if ranks.first:
                print(json.dumps({"ranks": ranks.count, "found": gathered}), flush=True)

        on_ranks(count, run)
    if folder is not None:
        print(json.dumps({"losses": trained(folder, every), "files": sampled(folder, every)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranks", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--folder", type=Path, help="train and sample too, into this folder")
    parser.add_argument("--link", action="store_true", help="count the bytes of a forward, in a namespace of its own")
    given = parser.parse_args()
    if given.link:
        over_the_link(given.ranks)
    else:
        main(given.ranks, given.all, given.folder)
