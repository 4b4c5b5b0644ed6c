"""Files: those of the FlexDiT authors' image model, DiT's, and our own with layout and sides."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import latte_fast
from latte_fast import FlexLatte, Latte, testing
from latte_fast.config import LatteConfig
from latte_fast.flex_config import FlexLatteConfig
from latte_fast.models.checkpoint import CheckpointError, load_checkpoint, read_about, read_checkpoint, save_state
from latte_fast.models.flexdit import from_sparsedit
from latte_fast.models.flexdit.adapter import FlexLatteAdapter
from latte_fast.models.flexdit.from_dense import kinds_of
from latte_fast.reference.sparse_dit import SparseDiT
from latte_fast.runs.config import TrainConfig
from latte_fast.runs.convert import convert
from latte_fast.runs.load import Trained, about_of

DIT = {"variant": 0, "input_size": 8, "num_frames": 1, "hidden_size": 32, "num_heads": 2, "num_classes": 5, "extras": 2}
# pooling blocks, modules and blocks at the top; and the same layout by letters
GROUPS = [(1, ((1, 2, 1, 1), (2, 1, 1, 0)), 2, "P GSSRD GGSR DD"), (2, ((1, 0, 1, 2),), 0, "PP GRDD")]


def authors(pool: int, groups: tuple, top: int, depth: int) -> SparseDiT:
    torch.manual_seed(0)
    model = SparseDiT(LatteConfig(**DIT, depth=depth), pool, groups, top)  # type: ignore[arg-type]
    testing.refill(model)
    return model.double().eval()


def arguments() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 900]), torch.tensor([0, 5])


@torch.no_grad()
@pytest.mark.parametrize(("pool", "groups", "top", "layout"), GROUPS, ids=lambda v: v if isinstance(v, str) else "")
def test_the_authors_model_gives_its_numbers(pool: int, groups: tuple, top: int, layout: str, tmp_path: Path) -> None:
    depth = len(layout.replace(" ", ""))
    oracle = authors(pool, groups, top, depth)
    state = oracle.state_dict()
    converted = from_sparsedit(state)
    assert len(converted) == len(state) and kinds_of(converted) == layout.replace(" ", "")
    fast = FlexLatte(**DIT, depth=depth, layout=layout, sides=(2, 3)).double().eval()
    fast.load_state_dict(converted)
    x, t, y = arguments()
    for side in (2, 3):
        want = oracle(x, t, y, side)
        assert want.abs().max() > 0
        assert testing.relative_error(fast(x[:, None], t, y, side=side)[:, 0], want) <= 1e-11
    # as weights to start from, in the form that their training writes
    torch.save({"model": state, "ema": state, "opt": {}, "args": 0}, tmp_path / "0400000.pt")
    model = FlexLatte(**DIT, depth=depth, layout=layout, sides=(2, 3))
    said = FlexLatteAdapter(model.config).start(model, str(tmp_path / "0400000.pt"))
    assert said.endswith(f"{len(state)} tensors taken")
    assert torch.equal(model.blocks[0].attn.v.weight, converted["blocks.0.attn.v.weight"].float())


def test_other_keys_are_refused() -> None:
    state = authors(*GROUPS[0][:3], depth=11).state_dict()
    extra = torch.zeros(1)
    for added, message in (
        ({"long.weight": extra}, "long.weight is unknown"),
        ({"dumbbell_blocks.0.semantic_blocks.0.attn.v.weight": extra}, "semantic_blocks.0.attn.v.weight is unknown"),
        ({"dumbbell_blocks.0.token_merge_blocks.0.merged_layer1.bias": extra}, "merged_layer1.bias is unknown"),
    ):
        with pytest.raises(CheckpointError, match=message):
            from_sparsedit(state | added)
    gone = ("pos_embed", "final_layer.linear.bias", "dumbbell_blocks.1.token_recover_blocks.0.merged_layer2.weight")
    for name in gone:
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            from_sparsedit({key: value for key, value in state.items() if key != name})
    for prefix, rule in (
        ("dumbbell_blocks.0.semantic_blocks.0.", "dumbbell_blocks.0 must be numbered from 0, found 1"),
        ("dumbbell_blocks.0.", "dumbbell_blocks must be numbered from 0, found 1"),
        ("normal_blocks.0.", "normal_blocks must be numbered from 0, found 1"),
    ):
        with pytest.raises(CheckpointError, match=rule):
            from_sparsedit({key: value for key, value in state.items() if not key.startswith(prefix)})


@torch.no_grad()
def test_dit_file_is_loaded_strictly(tmp_path: Path) -> None:
    """DiT's keys are those of variant 0, and every image of a clip gets DiT's numbers."""
    oracle = authors(0, (), 3, 3)
    state = {key.replace("normal_blocks.", "blocks."): value for key, value in oracle.state_dict().items()}
    torch.save(state, tmp_path / "DiT.pt")
    model = Latte(**DIT | {"depth": 3, "num_frames": 2}).double().eval()
    load_checkpoint(model, tmp_path / "DiT.pt")
    x, t, y = arguments()
    clip = torch.stack([x, x.flip(0)], dim=1)
    got = model(clip, t, y)
    for i in (0, 1):
        assert testing.relative_error(got[:, i], oracle(clip[:, i], t, y)) <= 1e-11
    torch.save({key: value for key, value in state.items() if key != "pos_embed"}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="pos_embed must have shape"):
        load_checkpoint(model, tmp_path / "part.pt")


@torch.no_grad()
def test_files_without_a_configuration_are_loaded_by_one(tmp_path: Path) -> None:
    """A DiT's and the authors'; without it the error is a call that loads the file but for what no tensor tells."""
    oracle = authors(0, (), 3, 3)
    plain = {key.replace("normal_blocks.", "blocks."): value.float() for key, value in oracle.state_dict().items()}
    torch.save({"model": plain, "ema": plain}, tmp_path / "DiT.pt")
    torch.save({"ema": authors(*GROUPS[0][:3], depth=12).float().state_dict()}, tmp_path / "flex.pt")
    with pytest.raises(
        ValueError, match=r"DiT\.pt: must hold temp_embed, .* latte_fast\.load\(path, config="
    ) as refused:
        latte_fast.load(tmp_path / "DiT.pt")
    assert called(refused, tmp_path / "DiT.pt").model.config == LatteConfig(**DIT | {"depth": 3, "num_heads": 1})
    with pytest.raises(ValueError, match=r"flex\.pt: must be loaded with a configuration") as refused:
        latte_fast.load(tmp_path / "flex.pt")
    assert called(refused, tmp_path / "flex.pt").model.config.kinds == "PGSSRDGGSRDD"
    x, t, y = arguments()
    trained = latte_fast.load(tmp_path / "DiT.pt", config=LatteConfig(**DIT, depth=3))
    want = oracle(x, t, y)
    assert testing.relative_error(trained.model.double()(x[:, None], t, y)[:, 0], want) <= 1e-6
    assert trained.adapter.sample_shape(64, 8) == (1, 4, 8, 8)
    config = FlexLatteConfig(**DIT, depth=12, layout=GROUPS[0][3], sides=(1, 3))
    assert latte_fast.load(tmp_path / "flex.pt", config=config).adapter.config.sides == (1, 3)
    with pytest.raises(CheckpointError, match="not this model"):
        latte_fast.load(tmp_path / "flex.pt", config=replace(config, layout="P GSSRD GSSR DD"))
    with pytest.raises(TypeError, match=r"config must be one of LatteConfig, FlexLatteConfig, .*, got dict"):
        latte_fast.load(tmp_path / "flex.pt", config=DIT)
    with pytest.raises(ValueError, match="config must be None for a folder, which holds its own, got LatteConfig"):
        latte_fast.load(tmp_path, config=LatteConfig())


def called(refused: pytest.ExceptionInfo, path: Path) -> Trained:
    """Loads as the error says."""
    text = str(refused.value).split("latte_fast.load", 1)[1]
    found: Trained = eval(f"latte_fast.load{text}", {"latte_fast": latte_fast, "path": path})
    return found


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pt", marks=pytest.mark.slow)])
def test_files_hold_layout_and_sides(tmp_path: Path, suffix: str) -> None:
    """Through conversions too; a file from elsewhere gets sides of a quarter to half of its grid."""
    keywords = {"input_size": 16, "num_frames": 2, "depth": 6, "hidden_size": 384, "num_heads": 6}
    config = FlexLatteConfig(**keywords, layout="PD GSRD", sides=(3, 5))
    adapter = FlexLatteAdapter(config)
    model = testing.refill(adapter.build())
    about = about_of(Trained(model, adapter, TrainConfig(), 0))
    adapter.export(model, tmp_path / f"own{suffix}", None, about)
    other = ".pt" if suffix == ".safetensors" else ".safetensors"
    convert(tmp_path / f"own{suffix}", tmp_path / f"again{other}", dtype=torch.float32)
    for name in (f"own{suffix}", f"again{other}"):
        assert read_about(tmp_path / name) == about and about["model"]["sides"] == [3, 5]
        assert latte_fast.load(tmp_path / name).adapter.config == config
    save_state(read_checkpoint(tmp_path / f"own{suffix}"), tmp_path / f"bare{suffix}")
    assert latte_fast.load(tmp_path / f"bare{suffix}").adapter.config.sides == (2, 3, 4)
    with pytest.raises(ValueError, match=r"config must be None for .*, which holds its own"):
        latte_fast.load(tmp_path / f"own{suffix}", config=config)
    odd = about | {"model": about["model"] | {"layout": "PD GSRD", "sids": [3]}}
    save_state(model.state_dict(), tmp_path / f"odd{suffix}", odd)
    with pytest.raises(ValueError, match="sids"):
        latte_fast.load(tmp_path / f"odd{suffix}")
