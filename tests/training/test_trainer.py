"""One process: what a step computes, precision by precision."""

from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latte_fast.data.seeding import SampleKey
from latte_fast.diffusion import create_diffusion
from latte_fast.diffusion.noise import Use, normal
from latte_fast.models.adapter import DataSizes
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte.model import Latte
from latte_fast.optimizers.adamw_ema import AdamWEma
from latte_fast.optimizers.ema import Ema
from latte_fast.runs.log import LOG, read_log
from latte_fast.training import OptimConfig, Trainer, load_trained
from latte_fast.training.objectives.denoising import DenoisingItems
from tests.helpers.tiny_run import MODEL, losses, tiny


def trained(out: Path, **changes: Any) -> list[float]:
    assert Trainer(tiny(out, **changes)).run() == 12
    return losses(out)


def test_draws_depend_on_the_number_alone(tmp_path: Path) -> None:
    trainer = Trainer(tiny(tmp_path / "run"))
    objective = trainer.objective
    drawn = DenoisingItems(objective.dataset, objective.adapter, trainer.config, objective.latent, True, 0.5)
    items = [drawn[SampleKey(0, 3, number)] for number in (5, 6, 5)]
    assert all(torch.equal(items[0][key], items[2][key]) for key in ("noise", "t", "drop", "eps", "video"))
    assert not torch.equal(items[0]["noise"], items[1]["noise"])
    assert not torch.equal(items[0]["noise"], items[0]["eps"])
    share = torch.stack([drawn[SampleKey(0, 0, number)]["drop"] for number in range(400)]).float().mean()
    assert 0.4 < share < 0.6
    process = replace(trainer.config.diffusion, timesteps="lognormal", shift=-2.0, steps=100)
    config = replace(trainer.config, diffusion=process)
    early = DenoisingItems(objective.dataset, objective.adapter, config, objective.latent, False, 0.0)
    assert not {"drop", "eps"} & early[SampleKey(0, 0, 0)].keys()
    steps = torch.stack([early[SampleKey(0, 0, number)]["t"] for number in range(400)]).float()
    assert steps.max() < 100 and 12 < steps.mean() < 17  # 14.5, of sigmoid(N(-2, 1))
    many = torch.cat([normal(0, number, (64,), Use.START) for number in range(500)])
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


def test_labels_are_dropped_once(tmp_path: Path) -> None:
    """By number, in the trainer; the model's own dropout is off though its null class is there."""
    trainer = Trainer(tiny(tmp_path / "run"))
    assert trainer.objective.dropout == 0.2 and trainer.objective.learner.model.y_embedder.dropout_prob == 0.0
    assert trainer.objective.learner.model.y_embedder.embedding_table.num_embeddings == 13
    batch = next(iter(trainer.batches()))
    batch["drop"] = torch.tensor([[True], [False], [True], [False]])
    kept = trainer.objective.adapter.conditions(batch, 0)["y"]
    assert kept.tolist() == [12, batch["label"][1].item(), 12, batch["label"][3].item()]
    state = torch.get_rng_state()
    trainer.losses("model", batch)
    assert torch.equal(torch.get_rng_state(), state), "a step draws from torch's own generator"


def test_loss_is_the_mean_over_a_batch_of_drawn_latents(tmp_path: Path) -> None:
    """In micro-batches too; what is encoded as it trains is mean + std * eps."""
    trainer = Trainer(tiny(tmp_path / "run", micro_batch=2))
    with torch.no_grad():
        for p in trainer.objective.learner.model.parameters():
            p.normal_(std=0.1)
    parts = list(islice(trainer.batches(), 2))
    trainer.objective.encoded = True
    for part in parts:
        part["eps"] = torch.randn_like(part["video"])
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    trainer.objective.vae = SimpleNamespace(encode=lambda x: (0.5 * x, 0.1 + x.abs()))  # type: ignore[assignment]
    x = 0.5 * whole["video"] + (0.1 + whole["video"].abs()) * whole["eps"]
    y = torch.where(whole["drop"][:, 0], 12, whole["label"])
    with torch.no_grad():
        want = create_diffusion("").training_losses(
            trainer.objective.learner.model, x, whole["t"], {"y": y}, whole["noise"]
        )
        got = [trainer.losses("model", part) for part in parts]
    for name, value in want.items():
        torch.testing.assert_close(sum(part[name] for part in got), value.mean(), rtol=1e-5, atol=1e-6)


def test_step_is_adamw_on_the_clipped_gradient(tmp_path: Path) -> None:
    """Against torch's own clip_grad_norm_, unfused AdamW and a lerp of the average, on the same batches."""
    optim = replace(tiny("").optim, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, ema_warmup=True)
    config = tiny(tmp_path / "run", micro_batch=2, optim=optim)
    trainer = Trainer(config)
    twin = Trainer(replace(config, out=str(tmp_path / "twin")))
    own = dict(twin.objective.learner.model.named_parameters())
    free = [p for p in own.values() if p.requires_grad]
    given = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(free, lr=config.optim.lr, **given, foreach=False, fused=False)  # type: ignore
    average = {name: p.detach().clone() for name, p in own.items()}
    batches, same = trainer.batches(), twin.batches()
    for step in range(6):
        trainer.update(batches)
        for batch in islice(same, 2):
            twin.losses("model", batch)["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(free, config.optim.clip)
        torch.testing.assert_close(trainer.norm, norm)
        optimizer.param_groups[0]["lr"] = config.optim.lr * min(1, (step + 1) / 5)
        if step >= 5:
            break
        optimizer.step()
        optimizer.zero_grad()
        for name, p in own.items():
            average[name] = average[name].lerp(p.detach(), 9 / (10 + step))
            torch.testing.assert_close(
                trainer.objective.learner.weights.by_name[name].detach(), p.detach(), rtol=1e-4, atol=1e-6
            )
            torch.testing.assert_close(trainer.objective.learner.ema.average[name], average[name], rtol=1e-4, atol=1e-6)
    assert norm > 0


def test_norm_in_the_log_is_of_its_own_step(tmp_path: Path) -> None:
    """Unclipped, it is computed for the lines of the log alone, the last step's among them."""
    optim = replace(tiny("").optim, clip=None)
    logs = {every: tmp_path / "runs" / f"{every}" for every in (1, 5)}
    for every, out in logs.items():
        assert Trainer(tiny(out, optim=optim, log_every=every)).run() == 12
    lines = [read_log(out / LOG) for out in logs.values()]
    assert all(0 <= line["data_wait"] <= 1 for line in lines[0] + lines[1])
    assert all(line["loss"] == pytest.approx(line["mse"] + line["vb"], rel=1e-6) for line in lines[0] + lines[1])
    each, some = ({line["step"]: line["grad_norm"] for line in part} for part in lines)
    assert some == {step: each[step] for step in (5, 10, 12)} and len(set(each.values())) == 12


def test_clip_limits_the_norm(tmp_path: Path) -> None:
    from latte_fast.training.weights import clip, norm_of

    grads = [torch.full((3, 4), 2.0), torch.full((5,), -1.0)]
    trainer = Trainer(tiny(tmp_path / "run"))
    norm = norm_of(grads, trainer.ranks, sharded=False)
    assert norm == pytest.approx(53**0.5)
    clip(grads, norm, 0.5)
    assert norm_of(grads, trainer.ranks, sharded=False) == pytest.approx(0.5, rel=1e-5)
    before = [g.clone() for g in grads]
    clip(grads, norm_of(grads, trainer.ranks, sharded=False), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))


def test_ema_swaps_back_bit_for_bit() -> None:
    params = {"a": torch.randn(7), "b": torch.randn(2, 3)}
    before = {name: p.clone() for name, p in params.items()}
    ema = Ema(params, 0.5)
    for p in params.values():
        p.mul_(3)
    optimizer = AdamWEma(list(params.values()), ema.by_weight(), {})
    optimizer.decay = ema.decay_at(0)
    optimizer.step()
    with ema.in_place_of(params):
        torch.testing.assert_close(params["a"], 2 * before["a"])
    assert torch.equal(params["a"], 3 * before["a"])
    warm = Ema(params, 0.9999, warmup=True)
    params["a"].zero_()
    optimizer = AdamWEma(list(params.values()), warm.by_weight(), {})
    optimizer.decay = warm.decay_at(0)
    optimizer.step()
    torch.testing.assert_close(warm.average["a"], 0.3 * before["a"])


@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_half_precision_follows_fp32(tmp_path: Path, precision: str) -> None:
    """Another precision, not another run: a bf16 value is off by up to 0.4 %, and 12 steps add such errors up."""
    full = trained(tmp_path / "fp32")
    half = trained(tmp_path / "half", precision=precision)
    torch.testing.assert_close(torch.tensor(half), torch.tensor(full), rtol=0.02, atol=0)
    assert half != full
    model = load_trained(tmp_path / "half").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_master_keeps_what_bf16_rounds_away(tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-6)
    trainer = Trainer(tiny(tmp_path / "run", precision="bf16-weights", optim=optim, micro_batch=2))
    weights = trainer.objective.learner.weights
    name = "x_embedder.proj.weight"
    before, shown = (
        weights.by_name[name].detach().clone(),
        weights.own[name].detach().clone(),
    )
    batches = trainer.batches()
    # the first update moves the head alone, whose zeros let no gradient through
    for _ in range(4):
        trainer.update(batches)
    moved = (weights.by_name[name] != before).float().mean()
    assert shown.dtype == torch.bfloat16 and moved > 0.5
    assert (weights.own[name] != shown).float().mean() < 0.1


@pytest.mark.parametrize("policy", ["elementwise", "mlp", "block"])
def test_recompute_changes_no_loss(tmp_path: Path, policy: str) -> None:
    plain = trained(tmp_path / "none")
    again = trained(tmp_path / policy, model=replace(MODEL, recompute=policy))
    torch.testing.assert_close(torch.tensor(again), torch.tensor(plain), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_compile_changes_no_loss(tmp_path: Path) -> None:
    plain = trained(tmp_path / "eager")
    compiled = trained(tmp_path / "compiled", compile=True)
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(plain), rtol=1e-4, atol=0)


def test_workers_change_no_loss(tmp_path: Path) -> None:
    assert trained(tmp_path / "two", workers=2) == trained(tmp_path / "none")


def test_joint_images(tmp_path: Path) -> None:
    """Two images beside each clip, with their own labels; samples are clips."""
    out = tmp_path / "run"
    sample = replace(tiny("").sample, every=12, count=2, steps=2)
    values = trained(out, images=2, sample=sample)
    assert len(values) == 12 and all(0 < v < 5 for v in values)
    assert (out / "samples" / "step-0000012.png").is_file()


def test_no_classes_and_other_processes(tmp_path: Path) -> None:
    assert LatteAdapter.fit(MODEL, DataSizes(3, 8, 2), [], None, None).conditions({}) == {}
    process = replace(
        tiny("").diffusion, prediction="v", schedule="squaredcos_cap_v2", timesteps="lognormal", min_snr=5.0
    )
    assert len(trained(tmp_path / "v", diffusion=process, model=replace(MODEL, learn_sigma=False))) == 12
    assert not {"mse", "vb"} & read_log(tmp_path / "v" / LOG)[0].keys()


def test_pretrained_starts_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    latte = Trainer(tiny(tmp_path / "unused")).objective.adapter.config
    model = Latte(**asdict(latte))
    torch.save({"ema": model.state_dict()}, tmp_path / "ffs.pt")
    trainer = Trainer(tiny(tmp_path / "run", pretrained=str(tmp_path / "ffs.pt")))
    for name, p in trainer.objective.learner.weights.by_name.items():
        assert torch.equal(p, model.state_dict()[name]), name
    dit = {key: value for key, value in model.state_dict().items() if key != "temp_embed"}
    dit["y_embedder.embedding_table.weight"] = torch.randn(1001, latte.hidden_size)
    torch.save(dit, tmp_path / "DiT.pt")
    said: list[str] = []
    trainer = Trainer(tiny(tmp_path / "run", pretrained=str(tmp_path / "DiT.pt")), say=said.append)
    assert "tensors taken" in said[0]
    assert torch.equal(
        trainer.objective.learner.weights.by_name["blocks.1.attn.qkv.weight"], dit["blocks.1.attn.qkv.weight"]
    )


def test_throughput_counts_until_the_device_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that gets to a step long after the host has handed it over, when its sums are read."""
    now = [100.0]
    monkeypatch.setattr("latte_fast.training.trainer.time.perf_counter", lambda: now[0])
    read = torch.Tensor.tolist

    def wait(x: torch.Tensor) -> Any:
        now[0] += 10.0
        return read(x)

    trainer = Trainer(tiny(tmp_path / "run"))
    trainer.update(trainer.batches())
    monkeypatch.setattr(torch.Tensor, "tolist", wait)
    line = trainer.line(1, 100.0, 2.5)
    assert (line["clips_per_s"], line["data_wait"]) == (4 / 10, 2.5 / 10)


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="loss must be finite, got nan at step"):
        Trainer(tiny(tmp_path / "run", optim=OptimConfig(lr=1e30))).run()
