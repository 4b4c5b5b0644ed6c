"""Every submodule of every model, changed in every way: it takes part with the oracle's numbers, or is refused."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from latte_fast import VQGAN, Latte, LatteIMG, LatteT2V, patch, reference, testing
from latte_fast.models.flexdit import FlexLatteT2V
from tests.helpers import flex, tiny_vqgan
from tests.trials.changes import judge, places

SIZES: dict[str, Any] = {"input_size": 8, "patch_size": 4, "in_channels": 2, "hidden_size": 16, "depth": 2,
                         "num_heads": 2, "num_frames": 2, "num_classes": 5}  # fmt: skip
TEXT: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "num_layers": 1,
                        "sample_size": 8, "caption_channels": 12, "video_length": 2}  # fmt: skip


class Trial(NamedTuple):
    truth: nn.Module
    fast: nn.Module
    call: Callable[[nn.Module], Tensor]


def class_model(joint: bool = False, **kwargs: Any) -> Trial:
    kwargs = SIZES | {"extras": 2} | kwargs
    torch.manual_seed(0)
    kind, oracle_kind = (LatteIMG, reference.latte.LatteIMG) if joint else (Latte, reference.latte.Latte)
    truth = testing.refill(oracle_kind(**kwargs))
    fast = kind(**kwargs)
    fast.load_state_dict(truth.state_dict())
    images = 1 if joint else 0
    x = torch.randn(2, 2 + images, 2, 8, 8, dtype=torch.float64)
    given: dict[str, Any] = {"y": torch.tensor([1, 4])} if kwargs["extras"] == 2 else {}
    if kwargs["extras"] == 78:
        given = {"text_embedding": torch.randn(2, 1, 77, 768, dtype=torch.float64)}
    if joint:
        given |= {"use_image_num": 1, "y_image": [torch.tensor([2]), torch.tensor([0])]}
    t = torch.tensor([3, 900])
    return Trial(truth.double().eval(), fast.double().eval(), lambda model: model(x, t, **given))


def text_model(theirs: bool = False) -> Trial:
    torch.manual_seed(0)
    if theirs:
        diffusers = pytest.importorskip("diffusers")
        more = {"norm_type": "ada_norm_single", "activation_fn": "gelu-approximate", "attention_bias": True}
        truth = diffusers.LatteTransformer3DModel(
            **TEXT, **more, in_channels=4, out_channels=8, patch_size=2, norm_elementwise_affine=False, norm_eps=1e-6
        )
    else:
        truth = reference.latte_t2v.LatteT2V(**TEXT)
    testing.refill(truth)
    truth.double().eval()
    fast = truth
    if not theirs:
        fast = LatteT2V(**TEXT).double().eval()
        fast.load_state_dict(truth.state_dict())
    x, text = torch.randn(2, 4, 2, 8, 8, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    t = torch.tensor([3, 900])

    def call(model: nn.Module) -> Tensor:
        out = model(x, t, text)
        return out if isinstance(out, Tensor) else out[0]

    return Trial(truth, fast, call)


def flex_model(joint: bool = False) -> Trial:
    torch.manual_seed(0)
    sizes = SIZES | {"input_size": 12, "depth": 6, "layout": "PPGSRD", "sides": (2,), "extras": 2}
    truth, fast = flex.flex_pair(joint, torch.float64, **sizes)
    images = 1 if joint else 0
    x, t = torch.randn(2, 2 + images, 2, 12, 12, dtype=torch.float64), torch.tensor([3, 900])
    given: dict[str, Any] = {"y": torch.tensor([1, 4])}
    if joint:
        given |= {"use_image_num": 1, "y_image": [torch.tensor([2]), torch.tensor([0])]}
    return Trial(truth.eval(), fast.eval(), lambda model: model(x, t, **given))


def flex_text_model() -> Trial:
    torch.manual_seed(0)
    kwargs = TEXT | {"num_layers": 5, "layout": "PGSRD", "sides": (2,)}
    truth = testing.refill(reference.flex_t2v.FlexLatteT2V(**kwargs)).double().eval()
    fast = FlexLatteT2V(**kwargs).double().eval()
    fast.load_state_dict(truth.state_dict())
    x, text = torch.randn(2, 4, 2, 8, 8, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    t = torch.tensor([3, 900])
    return Trial(truth, fast, lambda model: out if isinstance(out := model(x, t, text), Tensor) else out[0])


def vqgan() -> Trial:
    """Without the codebook, whose choices jump."""
    fast, truth = tiny_vqgan.pair(torch.float64)
    x = tiny_vqgan.clip(1, 4, 8).double()

    def call(model: Any) -> Tensor:
        if isinstance(model, VQGAN):
            return model.from_latents(model.latents(x))
        return 2 * model.decoder(model.post_vq_conv(model.latents(x / 2)))

    return Trial(truth, fast, call)


NATIVE: dict[str, Callable[[], Trial]] = {
    "Latte": class_model,
    "LatteT2V": text_model,
    "LatteIMG": lambda: class_model(joint=True),
    "Latte of text": lambda: class_model(extras=78),
    "Latte of tokens": lambda: class_model(conditioning="tokens"),
    "Latte variant 4": lambda: class_model(variant=4),
    "LatteIMG variant 3": lambda: class_model(joint=True, variant=3),
    "Latte of tubelets": lambda: class_model(patch_frames=2),
    "FlexLatte": flex_model,
    "FlexLatteIMG": lambda: flex_model(joint=True),
    "FlexLatteT2V": flex_text_model,
    "VQGAN": vqgan,
}
FOREIGN: dict[str, Callable[[], Trial]] = {
    "upstream's Latte": class_model,
    "upstream's LatteIMG": lambda: class_model(joint=True),
    "diffusers": lambda: text_model(theirs=True),
}
# what the reference does not call: blocks with other methods than forward, or with none
UNCALLED = {
    "Latte variant 4": ("blocks.0", "blocks.1"),
    "LatteIMG variant 3": ("blocks.0", "blocks.1"),
    "FlexLatte": ("blocks.2", "blocks.4"),
    "FlexLatteIMG": ("blocks.2", "blocks.4"),
    "FlexLatteT2V": ("transformer_blocks.1", "transformer_blocks.3"),
    "VQGAN": tuple(f"{half}.conv_blocks.{i}" for half in ("encoder", "decoder") for i in range(2)),
}
# by default every n-th cell of these
EVERY = {"Latte": 6, "LatteT2V": 6, "FlexLatte": 24, "VQGAN": 16}


def patched(model: nn.Module) -> str | None:
    report = patch(model)
    return None if report.swapped else report.kept[""]


def judged(name: str, trial: Trial, when: str, every: int) -> Counter:
    """Counts verdicts; raises with every wrong one."""
    fast = trial.fast if when == "native" else copy.deepcopy(trial.truth)
    if when == "after patch":
        assert patched(fast) is None
    counts: Counter = Counter()
    wrong = []
    for number, (path, kind) in enumerate(places(fast)):
        if path in UNCALLED.get(name, ()) or number % every:
            continue
        verdict = judge(trial.truth, fast, path, kind, trial.call, patched if when == "before patch" else None)
        counts[verdict if verdict in ("served", "refused") else "wrong"] += 1
        if verdict not in ("served", "refused"):
            wrong.append(f"{path}, {kind}: {verdict}")
    print(f"{name}, {when}: {dict(counts)}")
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong])
    assert counts["served"]
    return counts


@pytest.mark.parametrize("name", EVERY)
def test_native(name: str) -> None:
    judged(name, NATIVE[name](), "native", EVERY[name])


@pytest.mark.parametrize("when", ["before patch", "after patch"])
def test_foreign(when: str) -> None:
    judged("upstream's Latte", FOREIGN["upstream's Latte"](), when, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_native_all(name: str) -> None:
    judged(name, NATIVE[name](), "native", 1)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before patch", "after patch"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_all(name: str, when: str) -> None:
    judged(name, FOREIGN[name](), when, 1)
