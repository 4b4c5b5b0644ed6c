"""Training of the 3D-VQGAN: losses against the authors' formula, resume, ranks, previews, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latte_fast import reference
from latte_fast.models.tats.config import VQGANConfig
from latte_fast.models.tats.files import read_vqgan
from latte_fast.runs.log import LOG, read_log
from latte_fast.runs.plot import plot_run
from latte_fast.runs.vqgan_checks import check_vqgan
from latte_fast.training import TrainConfig, Trainer, read_config
from latte_fast.training.setup import check_same
from tests.helpers.tiny_vqgan import MODEL, RUN, scatter, tiny_vqgan_run

# relative, of two float64 trainings that differ by the order of their sums: four draws are 1.6e-13 apart at most, and a
# planted defect 0.69 at least
RANKS = 1e-9
TIMES = ("clips_per_s", "data_wait", "peak_bytes")


class Distance(torch.nn.Module):
    """A stand-in for LPIPS: a convolution's differences."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.conv(x) - self.conv(y)).square().mean([1, 2, 3])


def numbers(out: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_log(out / LOG)]


@pytest.mark.parametrize("gan", ["hinge", "vanilla"])
def test_losses_equal_the_oracle(tmp_path: Path, gan: Any) -> None:
    """Every term of both learners and the gradients, in float64, against the formula in one piece."""
    torch.manual_seed(0)
    distance = torch.jit.script(Distance())
    distance.save(str(tmp_path / "distance.pt"))
    options = replace(RUN, start=0, gan=gan, perceptual=str(tmp_path / "distance.pt"), image_gan=0.7, layers=3)
    trainer = Trainer(tiny_vqgan_run(tmp_path / "run", vqgan=options))
    objective: Any = trainer.objective
    batch = next(trainer.batches())
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    model, judges = objective.generator.model.double(), objective.discriminators.model.double()
    objective.distance.double()
    distance = distance.double()
    scatter(model), scatter(judges)
    with torch.no_grad():
        model.codebook(model.latents(batch["video"].movedim(1, 2)))
    model.codebook.forget()
    oracle: Any = reference.vqgan.VQGAN(**vars(MODEL)).double().train()
    oracle.load_state_dict(model.state_dict())
    theirs = [reference.vqgan.Discriminator(axes, 2, 3).double().train() for axes in (2, 3)]
    for net, ours in zip(theirs, (judges.image, judges.video), strict=True):
        net.load_state_dict(ours.state_dict())
    x = batch["video"].movedim(1, 2) / 2
    made, out = oracle(x)
    want = reference.vqgan.generator_loss(
        x, made, out["commitment_loss"], batch["frame"], *theirs, distance, image_gan=0.7
    )
    got = trainer.losses("generator", batch)
    assert batch["frame"].unique().numel() > 1 and want["matching"] > 0.1
    for name in ("l1", "commitment", "perceptual", "gan", "matching", "loss"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-11, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    mse = (made - x).square().mean([1, 2, 3, 4])
    torch.testing.assert_close(got["psnr"], (-10 * mse.log10()).mean())
    got["loss"].backward(), want["loss"].backward()
    assert all(p.grad is None for p in judges.parameters())
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for net in theirs:
        net.zero_grad()
    image, video = theirs
    frame = torch.arange(len(x)), slice(None), batch["frame"]
    judged = 0.7 * reference.vqgan.discriminator_loss(image(x[frame])[-1], image(made.detach()[frame])[-1], gan)
    judged = judged + reference.vqgan.discriminator_loss(video(x)[-1], video(made.detach())[-1], gan)
    got = trainer.losses("discriminators", batch)
    torch.testing.assert_close(got["loss"], judged, rtol=1e-11, atol=1e-12)
    got["loss"].backward(), judged.backward()
    for ours, net in zip((judges.image, judges.video), theirs, strict=True):
        for (name, p), q in zip(ours.named_parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vqgan") / "whole"
    sample = replace(tiny_vqgan_run("").sample, every=6, count=2)
    assert Trainer(tiny_vqgan_run(out, sample=sample), say=lambda text: None).run() == 12
    return out


def test_log_and_preview(whole: Path) -> None:
    lines = numbers(whole)
    assert [line["discriminators"] > 0 for line in lines] == [False] * 2 + [True] * 10
    assert lines[-1]["l1"] < 0.8 * lines[0]["l1"] and all(line["psnr"] > 0 for line in lines)
    assert 1 < lines[-1]["perplexity"] <= 24 and 0 < lines[-1]["usage"] <= 1
    assert "perceptual" not in lines[0]
    for line in lines:
        parts = sum(line[name] for name in ("l1", "commitment", "gan", "matching"))
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
    assert (whole / "samples" / "step-0000012.png").stat().st_size > 100


def test_resume_is_exact(whole: Path, tmp_path: Path) -> None:
    """Weights, moments, running statistics, codes and counts: the log and the weights are those of one run."""
    first = tiny_vqgan_run(tmp_path / "run", steps=7)
    assert Trainer(first, say=lambda text: None).run() == 7
    assert Trainer(replace(first, steps=12), resume=True, say=lambda text: None).run() == 12
    assert numbers(tmp_path / "run") == numbers(whole)
    last = "checkpoints/step-0000012"
    for stem in ("model", "ema"):
        found, want = (read_vqgan(out / last / f"{stem}.safetensors") for out in (tmp_path / "run", whole))
        assert all(torch.equal(found.state[key], value) for key, value in want.state.items())


def kills(folder: Path, count: int) -> None:
    command = [sys.executable, "-m", "tests.helpers.kills", str(folder), str(count), "3", "vqgan"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{count} kills")


@pytest.mark.slow
def test_kills_at_random_resume_bit_identical(tmp_path: Path) -> None:
    kills(tmp_path, 20)


COMPARED = ("loss", "l1", "commitment", "gan", "matching", "discriminators", "perplexity", "usage", "grad_norm")


def apart(folder: Path, norm: str, seed: int, *defect: str) -> dict[str, float]:
    """Runs on one and two ranks; returns each run's largest relative difference from the run on one."""
    command = [sys.executable, "-m", "tests.helpers.spread_vqgan", str(folder), norm, str(seed), *defect]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    logs = json.loads(done.stdout.splitlines()[-1])
    want = torch.tensor([[line[key] for key in COMPARED] for line in logs.pop("one")], dtype=torch.float64)
    assert want.shape == (4, len(COMPARED)) and want[2:].abs().min() > 0
    out = {}
    for name, log in logs.items():
        got = torch.tensor([[line[key] for key in COMPARED] for line in log], dtype=torch.float64)
        out[name] = ((got - want).abs() / want.abs().clamp(min=1e-3)).max().item()
    return out


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_ranks_equal_one(tmp_path: Path, norm: str, seed: int) -> None:
    """Batch statistics, drawn codes and their averages are those of both ranks' clips; runs move between ranks."""
    found = apart(tmp_path, norm, seed)
    assert found.keys() == {"two", "moved"} and max(found.values()) < RANKS, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "defect"), [("batch", "statistics"), ("batch", "codes"), ("group", "codes"), ("batch", "draws")]
)
def test_what_ranks_do_not_share_is_seen(tmp_path: Path, norm: str, defect: str) -> None:
    found = apart(tmp_path, norm, 0, defect)
    assert found["two"] > 1e4 * RANKS, found


def test_codes_and_discriminators_train_in_bf16(tmp_path: Path) -> None:
    trainer = Trainer(tiny_vqgan_run(tmp_path / "run", precision="bf16", steps=4), say=lambda text: None)
    assert trainer.run() == 4
    book = trainer.objective.model.codebook  # type: ignore[attr-defined]
    assert book.embeddings.dtype == torch.float32 and all(line["loss"] > 0 for line in numbers(tmp_path / "run"))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"frames": 5}, "frames must be a multiple of the downsampling's 2, got 5"),
    ({"size": 10}, "size must be a multiple of the downsampling's 4, got 10"),
    ({"precision": "bf16-weights"}, "precision must be fp32 or bf16 for a VQGAN"),
    ({"images": 2}, "images must be 0 for a VQGAN"),
    ({"parallel": "fsdp"}, "parallel must be ddp or none for a VQGAN"),
    ({"compile": True}, "compile must be off for a VQGAN"),
    ({"pretrained": "nowhere.ckpt"}, "pretrained must be an existing file, got 'nowhere.ckpt'"),
    ({"vqgan": replace(RUN, perceptual="nowhere.pt")}, "vqgan.perceptual must be an existing file"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_vqgan_run(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vqgan.l1 must be at least 0, and finite, got -1"):
        replace(RUN, l1=-1.0)
    (tmp_path / "odd.pt").write_text("no network")
    with pytest.raises(ValueError, match=r"vqgan\.perceptual must be a TorchScript file"):
        Trainer(tiny_vqgan_run(tmp_path / "run", vqgan=replace(RUN, perceptual=str(tmp_path / "odd.pt"))))
    before = tiny_vqgan_run("run")
    check_same(replace(before, steps=20), before, Path("run"))
    with pytest.raises(ValueError, match="micro_batch must be None"):
        check_same(replace(before, micro_batch=2), before, Path("run"))
    group = replace(RUN, model=replace(MODEL, n_hiddens=16, norm="group"))
    check_same(replace(before, micro_batch=2, vqgan=group), replace(before, vqgan=group), Path("run"))


RECIPES = Path(__file__).parents[2] / "configs" / "tats"


@pytest.mark.parametrize(("name", "interval"), [("ucf101", 1), ("sky", 1), ("taichi", 4)])
def test_recipes_are_the_authors(name: str, interval: int) -> None:
    config = read_config(RECIPES / f"{name}.yaml", TrainConfig)
    check_vqgan(config)
    options = config.vqgan
    assert options.model == VQGANConfig() and config.data.kind == name and config.data.interval == interval
    assert (options.perceptual_weight, options.matching, options.l1, options.start) == (4, 4, 4, 10_000)
    assert options.restart == 0 and (config.frames, config.size, config.batch) == (16, 128, 8 * 6 * 2)
    assert config.optim.lr == pytest.approx(3e-5 * 6 * (8 / 8) * (2 / 4)) and config.optim.betas == (0.5, 0.9)


def test_plot_shows_the_codes(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot_run(whole, tmp_path / "curves.png").stat().st_size > 10_000
