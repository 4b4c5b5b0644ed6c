"""8 bits in diffusers' pipelines: a patched transformer, and text to films by `sample --pretrained --precision`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latte_fast
from latte_fast.cli.sample import sample
from tests.helpers.pipelines import pipeline, transformer

# widths that are multiples of 16
WIDE: dict[str, Any] = {"num_attention_heads": 2, "cross_attention_dim": 48}


@torch.no_grad()
def test_a_patched_transformer() -> None:
    model = transformer(**WIDE)
    with pytest.raises(ValueError, match=r"a model of another library needs latte_fast\.patch\(model\) first"):
        latte_fast.quantize(model)
    latte_fast.patch(model)
    torch.manual_seed(2)
    x, t, text = torch.randn(2, 4, 3, 8, 8), torch.tensor([3, 900]), torch.randn(2, 7, 40)

    def call() -> torch.Tensor:
        return model(x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]

    want = call()
    assert len(latte_fast.quantize(model).taken) == 20
    assert 1e-3 < float((call() - want).norm() / want.norm()) < 0.05
    latte_fast.unquantize(model)
    assert torch.equal(call(), want)


def test_text_to_films(tmp_path: Path) -> None:
    given: dict[str, Any] = {"prompt": ("rain",), "steps": 2, "height": 16, "width": 16, "format": "npz"}
    pipeline(**WIDE).save_pretrained(tmp_path / "wide")
    for name, precision in (("a", None), ("b", "fp8")):
        sample(pretrained=str(tmp_path / "wide"), out=str(tmp_path / name), precision=precision, **given)  # type: ignore[arg-type]
    films = [np.load(tmp_path / name / "000000.npz")["video"].astype(int) for name in "ab"]
    assert films[0].std() > 1 and 0 < np.abs(films[0] - films[1]).mean() < 10
    # 72 is no multiple of 16
    pipeline().save_pretrained(tmp_path / "narrow")
    with pytest.raises(SystemExit, match=r"no layer can have 8 bits; .*multiples of 16, got 72"):
        sample(pretrained=str(tmp_path / "narrow"), out=str(tmp_path / "c"), precision="fp8", **given)
