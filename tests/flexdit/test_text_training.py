"""A FlexLatteT2V's run: its loss against the oracle, stops, weights to start from, samples and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import latte_fast
from latte_fast import LatteT2V, reference, testing
from latte_fast.data import DataConfig
from latte_fast.flex_config import density_schedule
from latte_fast.models.families import adapter_of
from latte_fast.models.flexdit import FlexLatteT2V
from latte_fast.models.flexdit.text_adapter import FlexLatteT2VAdapter
from latte_fast.runs.convert import convert
from latte_fast.training import ModelConfig, TrainConfig, Trainer
from tests.helpers.texts import SHAPES, shapes_texts
from tests.helpers.tiny_run import losses, tiny

MODEL = ModelConfig(patch_size=2, hidden_size=16, depth=6, num_heads=2, layout="PD GSRD", sides=(1, 2, 3))
# the dense model of the same sizes
DENSE: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 6, "patch_size": 2,
                         "in_channels": 3, "out_channels": 6, "sample_size": 8, "caption_channels": 12,
                         "cross_attention_dim": 16, "video_length": 2}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes_texts(tmp_path_factory.mktemp("texts") / "out")


def text_config(out: Path, texts: Path, **changes: Any) -> TrainConfig:
    data = DataConfig(kind="shapes", clips=11, text=str(texts))
    return tiny(out, **{"data": data, "model": MODEL, "steps": 6, "save_every": 2} | changes)


def test_loss_is_the_oracle_s(texts: Path, tmp_path: Path) -> None:
    """At the side of each update, with the gradients of every parameter."""
    trainer = Trainer(text_config(tmp_path / "run", texts))
    objective: Any = trainer.objective
    assert type(objective.adapter) is FlexLatteT2VAdapter and objective.adapter.config.num_layers == 6
    testing.refill(objective.learner.model)
    oracle = reference.flex_t2v.FlexLatteT2V(**vars(objective.adapter.config))
    oracle.load_state_dict(objective.learner.model.state_dict())
    batch, sides = next(trainer.batches()), set()
    for step in range(4):
        side = objective.densities.at(step).keywords["side"]
        if side in sides:
            continue
        sides.add(side)
        loss = objective.losses("model", batch, step)["loss"].mean()

        def plain(x: torch.Tensor, t: torch.Tensor, side: int = side) -> torch.Tensor:
            out: torch.Tensor = oracle(x.transpose(1, 2), t, batch["text"][:, 0], batch["text_mask"][:, 0], side)
            return out.transpose(1, 2)

        want = objective.diffusion.training_losses(plain, batch["video"], batch["t"], {}, batch["noise"])["loss"].mean()
        torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
        got, exact = (torch.autograd.grad(x, list(m.parameters())) for x, m in
                      ((loss, objective.learner.model), (want, oracle)))  # fmt: skip
        for (name, _), g, w in zip(oracle.named_parameters(), got, exact, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert len(sides) > 1


def test_resumes_exactly_and_is_sampled(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Trainer(text_config(tmp_path / "whole", texts)).run() == 6
    first = text_config(tmp_path / "parts", texts, steps=3, optim=tiny("").optim)
    Trainer(first).run()
    Trainer(text_config(tmp_path / "parts", texts), resume=True).run()
    assert losses(tmp_path / "parts")[:3] == losses(tmp_path / "whole")[:3]
    trained = latte_fast.load(tmp_path / "whole")
    assert type(trained.model) is FlexLatteT2V and trained.adapter.name == "flex_latte_t2v"
    seen: list[int] = []
    forward = trained.model.forward
    monkeypatch.setattr(trained.model, "forward", lambda *a, **k: (seen.append(k["side"]), forward(*a, **k))[1])
    wanted = list(SHAPES.values())[:2]
    drawn = latte_fast.sample(trained, samples=2, steps=8, guidance=2.0, classes=wanted, progress=False)
    assert drawn is not None and seen == list(density_schedule(8, (1, 2, 3)))
    # a folder for those who have no run
    folder = convert(tmp_path / "whole", tmp_path / "folder")
    again = latte_fast.load(folder)
    assert type(again.model) is FlexLatteT2V and again.adapter.config == trained.adapter.config
    assert type(adapter_of(again.model)) is FlexLatteT2VAdapter
    for name, p in trained.model.state_dict().items():
        assert torch.equal(p, again.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="_class_name must be LatteTransformer3DModel or LatteT2V, got 'FlexLatteT2V'"):
        LatteT2V.from_pretrained(folder)


@pytest.mark.parametrize("form", ["folder", "file", "pixart"])
def test_starts_from_a_dense_model(form: str, texts: Path, tmp_path: Path) -> None:
    """Whose space blocks are taken layer for layer; one of its own kind is taken whole."""
    torch.manual_seed(0)
    dense = LatteT2V(**DENSE)
    dense.save_pretrained(tmp_path / "dense")
    if form == "pixart":
        path = tmp_path / "dense" / "config.json"
        path.write_text(path.read_text().replace("LatteTransformer3DModel", "PixArtTransformer2DModel"))
    if form == "file":
        save_file({key: value.clone() for key, value in dense.state_dict().items()}, tmp_path / "dense.safetensors")
    start = tmp_path / ("dense.safetensors" if form == "file" else "dense")
    said: list[str] = []
    config = text_config(tmp_path / "run", texts, pretrained=str(start), steps=1)
    trainer = Trainer(config, say=said.append)
    own = trainer.objective.learner.model.state_dict()  # type: ignore[attr-defined]
    assert "taken" in said[0]
    merged = [name for name in own if "merged_layer" in name]
    assert len(merged) == 4 and not own["transformer_blocks.4.merged_layer1.weight"].any()
    assert torch.equal(own["transformer_blocks.4.merged_layer2.weight"], torch.eye(16))
    for name in own.keys() - set(merged):
        assert torch.equal(own[name], dense.state_dict()[name]), name
    if form == "folder":
        trainer.run()
        weights = tmp_path / "run" / "checkpoints" / "step-0000001" / "model.safetensors"
        said.clear()
        Trainer(text_config(tmp_path / "next", texts, pretrained=str(weights)), say=said.append)
        assert said[0].endswith(f"{len(own)} tensors taken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 1}, "images must be 0 for FlexDiT's model of text"),
        ({"model": ModelConfig(patch_size=2, hidden_size=16, depth=5, num_heads=2, layout="PD GSRD")}, "5 blocks"),
    ],
)
def test_bad_runs_cost_nothing(changes: dict[str, Any], message: str, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(text_config(tmp_path / "run", texts, **changes))
    assert not (tmp_path / "run").exists()
