"""Configurations: YAML in and out, and everything that is refused before any work."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latte_fast.data import DataConfig
from latte_fast.models.adapter import DataSizes
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.training import ModelConfig, OptimConfig, Ranks, TrainConfig, Trainer, read_config, write_config
from latte_fast.training.lr_schedule import learning_rate
from latte_fast.training.setup import check_same
from tests.helpers.tiny_run import MODEL, tiny


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", micro_batch=2, optim=OptimConfig(betas=(0.8, 0.9), clip=None))
    write_config(tmp_path / "c.yaml", config)
    assert read_config(tmp_path / "c.yaml", TrainConfig) == config


def test_yaml_reads_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1e-4, clip: 1, betas: [0.9, 0.95]}\nmodel:\n  preset: Latte-S/2\n")
    config = read_config(path, TrainConfig)
    assert config.optim.lr == 1e-4 and config.optim.clip == 1.0 and config.optim.betas == (0.9, 0.95)
    assert LatteAdapter.fit(config.model, DataSizes(4, 32, 16), [], None, None).config.hidden_size == 384
    path.write_text("")
    assert read_config(path, TrainConfig) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stesp: 3", "got stesp"),
        ("optim: {rl: 1}", "got optim.rl"),
        ("optim: {lr: fast}", "optim.lr must be a number, got 'fast'"),
        ("optim: {lr: true}", "optim.lr must be a number, got True"),
        ("optim: {lr: [1e-4]}", "optim.lr must be a number, got ['1e-4']"),
        ("steps: many", "steps must be an integer, got 'many'"),
        ("steps: true", "steps must be an integer, got True"),
        ("compile: 1", "compile must be true or false, got 1"),
        ("precision: fp64", "precision must be one of fp32, bf16, bf16-weights, got 'fp64'"),
        ("optim: {betas: [1, 2, 3]}", "optim.betas must be a list of 2"),
        ("model: 3", "model. must be a mapping"),
        ("a: [", "must be YAML"),
        ("optim:\n  lr: 1e-3\n  eps: 1e-8\n  lr: 1e-4", "lr twice in"),
        ("- a", "must be a mapping"),
    ],
)
def test_yaml_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_config(path, TrainConfig)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
        ({"optim": {"lr": 0.0}}, "optim.lr must be positive"),
        ({"optim": {"clip": -1.0}}, "optim.clip must be positive"),
        ({"optim": {"ema": 1.0}}, "optim.ema must be in [0, 1)"),
        ({"optim": {"lr": float("inf")}}, "optim.lr must be positive, and finite, got inf"),
        ({"optim": {"betas": (0.9, 1.0)}}, "optim.betas must be in [0, 1), got (0.9, 1.0)"),
        ({"optim": {"eps": float("inf")}}, "optim.eps must be at least 0, and finite, got inf"),
        ({"optim": {"warmup": -1}}, "optim.warmup must be at least 0, got -1"),
        ({"optim": {"ema": -0.1}}, "optim.ema must be in [0, 1), got -0.1"),
        ({"optim": {"weight_decay": -0.1}}, "optim.weight_decay must be at least 0, got -0.1"),
        ({"optim": {"final_share": 1.1}}, "optim.final_share must be in [0, 1], got 1.1"),
        ({"images": -1}, "images must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"diffusion": {"steps": 0}}, "diffusion.steps must be at least 1, got 0"),
        ({"diffusion": {"min_snr": 0.0}}, "diffusion.min_snr must be positive, got 0.0"),
        ({"sample": {"every": -1}}, "sample.every must be at least 0, got -1"),
        ({"sample": {"count": 0}}, "sample.count must be at least 1, got 0"),
        ({"sample": {"every": 1, "steps": 1}}, "sample.steps must be in [2, diffusion.steps = 1000], got 1"),
        ({"seed": 1 << 64}, "seed must be below 2^64, got 18446744073709551616"),
        ({"diffusion": {"shift": float("nan")}}, "diffusion.shift must be finite, got nan"),
        ({"sample": {"scale": -1.0}}, "sample.scale must be at least 0"),
        ({"sample": {"every": 1, "steps": 2000}}, "sample.steps must be in [2, diffusion.steps = 1000]"),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        base = tiny("x")
        given = {k: replace(getattr(base, k), **v) if isinstance(v, dict) else v for k, v in change.items()}
        replace(base, **given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "ranks", "message"),
    [
        ({"micro_batch": 3}, 1, "micro_batch must be a divisor of the 4 clips of a process, got 3"),
        ({}, 3, "batch must be a multiple of the 3 processes, got 4"),
        ({"parallel": "none"}, 2, "parallel must be ddp or fsdp for 2 processes, got 'none'"),
        ({"precision": "bf16-weights", "parallel": "ddp"}, 2, "precision must be fp32, bf16, or used with"),
        ({"pretrained": "nowhere.pt"}, 1, "pretrained must be a file, got 'nowhere.pt'"),
        ({"model": ModelConfig(preset="Latte-Q/2")}, 1, "model.preset must be one of Latte-XL/2"),
        ({"model": ModelConfig(depth=2)}, 1, "model.patch_size must be given where model.preset is not"),
        ({"size": 10}, 1, "input_size must be a multiple of patch_size 4, got 10"),
    ],
)  # fmt: skip
def test_trainer_refuses_before_work(tmp_path: Path, change: dict[str, Any], ranks: int, message: str) -> None:
    config = tiny(tmp_path / "run", **change)
    with pytest.raises(ValueError) as error:
        if ranks > 1:
            from latte_fast.training.setup import check_run

            check_run(config, Ranks(0, ranks), resume=False)
        else:
            Trainer(config)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "module"), [("fp8", "torchao"), ("tensorboard", "torch.utils.tensorboard")])
def test_extras_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=rf"pip install 'latte_fast\[{name}\]'"):
        Trainer(tiny(tmp_path / "run", **{name: True}))


def test_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=1)
    Trainer(config).run()
    with pytest.raises(ValueError, match=r"out must be a new folder, or the run resumed \(--resume\)"):
        Trainer(config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"out must be a run with config\.yaml"):
        Trainer(replace(config, out=str(tmp_path / "other")), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 8}, "batch must be 4 as in"),
        ({"seed": 1}, "seed must be 0 as in"),
        ({"model": replace(MODEL, depth=4)}, "model.depth must be 2 as in"),
        ({"optim": OptimConfig()}, "optim.lr must be 0.003 as in"),
    ],
)
def test_resume_keeps_the_numbers(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = tiny(tmp_path / "run", steps=1)
    Trainer(config).run()
    with pytest.raises(ValueError) as error:
        Trainer(replace(config, **change), resume=True)
    assert message in str(error.value)
    Trainer(replace(config, steps=2, model=replace(MODEL, recompute="block"), log_every=5), resume=True).run()


def test_resume_keeps_the_vae_that_makes_the_latents(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=1)
    Trainer(config).run()
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"vae must be 'identity' as in .*config\.yaml, got 'other'"):
        Trainer(replace(config, vae="other", steps=2), resume=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    latents = replace(config, data=DataConfig(kind="latents", path="x"))
    check_same(replace(latents, vae="other"), latents, tmp_path / "run")


def test_rate() -> None:
    cosine = OptimConfig(lr=1.0, rate="cosine", warmup=4, final_share=0.1)
    assert [learning_rate(cosine, i, 104) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(cosine, 54, 104) == pytest.approx(0.55)
    assert learning_rate(cosine, 104, 104) == pytest.approx(0.1)
    assert {learning_rate(OptimConfig(lr=2.0), i, 10) for i in range(10)} == {2.0}
