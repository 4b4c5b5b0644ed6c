"""Makes the same run on one, two and four ranks. As a process: python -m tests.helpers.spread FOLDER COUNTS."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from latte_fast.codecs.vae import open_vae
from latte_fast.data import DataConfig
from latte_fast.distributed.data_parallel import local
from latte_fast.runs.log import LOG, read_log
from latte_fast.sampling.files import sample_files
from latte_fast.sampling.request import Request
from latte_fast.sampling.source import trained_source
from latte_fast.training import Ranks, Trainer, load_trained
from tests.helpers.forks import on_ranks
from tests.helpers.texts import shapes_texts
from tests.helpers.tiny_run import tiny

FOLDER = Path(sys.argv[1])
# a batch that four ranks share in two micro-batches
CONFIG = replace(tiny("unused"), batch=8, steps=6, save_every=3)


def train(name: str, count: int, resume: bool = False, **changes: object) -> None:
    config = replace(CONFIG, out=str(FOLDER / name), **changes)  # type: ignore[arg-type]
    on_ranks(count, lambda ranks: Trainer(config, ranks, resume, say=lambda text: None).run())


def losses(name: str) -> list[list[float]]:
    return [[line["loss"], line["grad_norm"]] for line in read_log(FOLDER / name / LOG)]


def guided(ranks: Ranks) -> None:
    """Asserts that forward_with_cfg of a model sharded over ranks gives what the whole model's gives."""
    name = f"guided-{ranks.count}"
    config = replace(CONFIG, out=str(FOLDER / name), parallel="fsdp")
    trainer = Trainer(config, ranks, say=lambda text: None)
    learner = trainer.objective.learner
    run = trainer.batches()
    for _ in range(2):
        trainer.update(run)
    whole = {key: p.full_tensor() for key, p in learner.weights.by_name.items()}
    assert any(local(p).shape != whole[key].shape for key, p in learner.weights.by_name.items()), "nothing is sharded"
    twin = type(learner.model)(**trainer.objective.adapter.config.__dict__).eval()
    twin.load_state_dict(whole)
    x = torch.randn(4, *trainer.objective.latent, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([5, 500, 5, 500]), torch.tensor([3, 4, 12, 12])
    learner.model.eval()
    with torch.no_grad():
        got, want = (m.forward_with_cfg(x, t, y=y, cfg_scale=4.0) for m in (learner.model, twin))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert want.abs().max() > 1e-3
    learner.model.train()
    if ranks.count > 1:
        dist.barrier()


def sampled(count: int) -> dict[str, bytes]:
    out = FOLDER / f"samples-{count}"
    trained = load_trained(FOLDER / "one")
    source = trained_source(trained, open_vae("identity", "cpu", torch.float32))
    request = Request(count=7, batch=2, steps=3, method="ddpm", frames=3)
    on_ranks(count, lambda ranks: sample_files(source, request, out, ranks))
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def main(counts: list[int]) -> None:
    # makes torch import its lazy modules before the forks; trains no step, which would start threads
    Trainer(replace(CONFIG, out=str(FOLDER / "unused")))
    train("one", 1)
    train("one-accumulated", 1, micro_batch=2)
    train("one-ema", 1, sample=replace(CONFIG.sample, every=6, count=2, steps=2))
    often = replace(CONFIG.sample, every=1, count=2, steps=2)
    for count in counts:
        train(f"ddp-{count}", count, parallel="ddp")
        train(f"ddp-{count}-accumulated", count, parallel="ddp", micro_batch=1)
        train(f"fsdp-{count}-accumulated", count, parallel="fsdp", micro_batch=1, sample=often)
    # with two ranks alone, the run that moves between its halves is one of fsdp from the first step to the last
    everything = len(counts) > 1
    for count in counts if everything else ():
        train(f"fsdp-{count}", count, parallel="fsdp")
    for time_pos in ("absolute", "rope") if everything else ("rope",):
        half = {"precision": "bf16-weights", "model": replace(CONFIG.model, time_pos=time_pos), "sample": often}
        train(f"half-{time_pos}-1", 1, **half)
        train(f"half-{time_pos}-2", 2, parallel="fsdp", **half)
    most = counts[-1]
    train("moved", most, parallel="fsdp", steps=3)
    for count, how in ((2, "fsdp"), (2, "ddp"), (1, "auto")):
        name = f"moved-to-{how}-{count}"
        (FOLDER / name).mkdir()
        for path in sorted((FOLDER / "moved").rglob("*")):
            target = FOLDER / name / path.relative_to(FOLDER / "moved")
            target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
        train(name, count, resume=True, parallel=how)
    texts = DataConfig(kind="shapes", clips=11, text=str(shapes_texts(FOLDER / "texts")))
    for count, how in ((1, "auto"), *([(2, "ddp")] if everything else []), (2, "fsdp")):
        train(f"text-{how}-{count}", count, parallel=how, data=texts)
    for count in counts:
        on_ranks(count, guided)
    one, two = sampled(1), sampled(2)
    print(
        json.dumps(
            {
                "losses": {p.name: losses(p.name) for p in sorted(FOLDER.iterdir()) if (p / LOG).exists()},
                "files": len(one),
                "same": one == two,
            }
        )
    )


if __name__ == "__main__":
    main([int(count) for count in sys.argv[2].split(",")])
