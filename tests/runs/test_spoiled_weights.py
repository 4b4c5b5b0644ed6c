"""Files whose tensors can be no weights: refused by name in convert and at a start; a converted run can be sampled."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latte_fast import LatteT2V
from latte_fast.cli.sample import sample
from latte_fast.models.checkpoint import CheckpointError
from latte_fast.models.latte.adapter import LatteAdapter
from latte_fast.models.latte.from_dit import init_from_dit
from latte_fast.models.latte_t2v.diffusers_folder import start_from_pixart
from latte_fast.runs.convert import convert
from latte_fast.training import Trainer
from tests.helpers.t2v import SMALL
from tests.helpers.tiny_latte import equal, fresh, refilled
from tests.helpers.tiny_run import tiny

KEY = "blocks.1.mlp.fc2.weight"
State = dict[str, Tensor]


def poked(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[1, 2] = value
    return x


# what is done to one tensor -> what the error says of it
SPOILS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "complex": (lambda x: x.to(torch.complex64), "must be of float32, float16, bfloat16, float64, found complex64"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "must be of float32, .*, found float8_e4m3fn"),
    "integer": (lambda x: (100 * x).to(torch.int32), "must be of floating numbers, found torch.int32"),
    "bool": (lambda x: x > 0, "must be of floating numbers, found torch.bool"),
    "NaN": (lambda x: poked(x, float("nan")), "must be finite, found NaN or infinity"),
    "infinite": (lambda x: poked(x, float("inf")), "must be finite, found NaN or infinity"),
    "sparse": (lambda x: x.to_sparse(), "must be dense, found a tensor of layout torch.sparse_coo"),
    "meta": (lambda x: x.to("meta"), "must be dense, found a meta tensor without values"),
    "cut": (lambda x: x[:-1].clone(), r"must have shape \(64, 256\), found \(63, 256\)"),
    "a number": (lambda x: x[0, 0].clone(), r"must have shape \(64, 256\), found \(\)"),
}


def spoiled_keys(state: State) -> dict[str, tuple[State, str]]:
    """Returns spoiled state dicts, and the pattern of what must be said of each."""
    found = {what: (state | {KEY: spoil(state[KEY])}, f"{KEY} {said}") for what, (spoil, said) in SPOILS.items()}
    found["missing"] = ({k: v for k, v in state.items() if k != KEY}, f"{KEY} must have shape .*, found none")
    found["unknown"] = (state | {"blocks.1.norm3.weight": torch.ones(64)}, r"blocks.1.norm3.weight \(64,\) is unknown")
    return found


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_convert_and_pretrained_refuse_by_name(tmp_path: Path, suffix: str) -> None:
    state, target = refilled().state_dict(), fresh()
    path, out = tmp_path / f"spoiled.{suffix}", tmp_path / "out.safetensors"
    for what, (spoiled, pattern) in spoiled_keys(state).items():
        if suffix == "pt":
            torch.save({"ema": spoiled}, path)
        elif what in ("sparse", "meta"):
            continue  # no such file
        else:
            save_file(spoiled, path)
        with pytest.raises(CheckpointError, match=pattern) as converted:
            convert(path, out)
        assert str(path) in str(converted.value), what
        with pytest.raises(CheckpointError, match=pattern) as started:
            LatteAdapter(target.config).start(target, str(path))
        assert str(path) in str(started.value), what
    assert equal(target, fresh()) and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("what", ["complex", "integer", "NaN", "sparse", "meta"])
def test_a_text_to_video_folder_is_refused_by_name(tmp_path: Path, what: str) -> None:
    torch.manual_seed(0)
    model = LatteT2V(**SMALL)
    model.save_pretrained(tmp_path / "a")
    state, key = model.state_dict(), "transformer_blocks.0.ff.net.2.weight"
    spoil, said = SPOILS[what]
    (tmp_path / "a" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state | {key: spoil(state[key])}, tmp_path / "a" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"{key} {said}"):
        convert(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    text = (tmp_path / "a" / "config.json").read_text()
    (tmp_path / "a" / "config.json").write_text(text.replace("LatteTransformer3DModel", "PixArtTransformer2DModel"))
    target = LatteT2V(**SMALL)
    before = {name: p.clone() for name, p in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"{key} {said}"):
        start_from_pixart(target, tmp_path / "a")
    assert all(torch.equal(p, before[name]) for name, p in target.state_dict().items())


def test_a_dit_of_integers_is_refused_by_name(tmp_path: Path) -> None:
    """Which load_state_dict would cast."""
    state = {name: x for name, x in refilled().state_dict().items() if name != "temp_embed"}
    torch.save(state | {KEY: (100 * state[KEY]).int()}, tmp_path / "dit.pt")
    target = fresh()
    with pytest.raises(CheckpointError, match=f"{KEY} must be of floating numbers, found torch.int32"):
        init_from_dit(target, tmp_path / "dit.pt")
    assert equal(target, fresh())


def drawn(folder: Path) -> np.ndarray:
    return np.stack([np.load(file)["video"] for file in sorted(folder.glob("*.npz"))])


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_a_converted_run_can_be_sampled(tmp_path: Path, name: str) -> None:
    """Though no shape tells its number of heads: the file's metadata does, or the JSON beside a .pt."""
    Trainer(tiny(tmp_path / "run", steps=2)).run()
    convert(tmp_path / "run", tmp_path / name)
    for source in ("run", name):
        sample(str(tmp_path / source), str(tmp_path / f"of-{source}"), samples=2, steps=2, format="npz")
    assert np.array_equal(drawn(tmp_path / "of-run"), drawn(tmp_path / f"of-{name}"))
    if name == "out.pt":
        (tmp_path / "out.json").unlink()
        with pytest.raises(SystemExit, match=r"^sample: .*out.pt: width must be one of"):
            sample(str(tmp_path / name), str(tmp_path / "again"), samples=2, steps=2, format="npz")
        assert not (tmp_path / "again").exists()
