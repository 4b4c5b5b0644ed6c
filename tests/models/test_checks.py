"""What a Latte refuses before it does any work."""

from typing import Any

import pytest
import torch

BAD: dict[str, tuple[dict, dict, type[Exception], str]] = {
    "frames": ({"frames": 4}, {}, ValueError, "F = 3 video frames.*got 4"),
    "height": ({"h": 7}, {}, ValueError, "H a positive multiple of the patch 2, got 7"),
    "zero width": ({"w": 0}, {}, ValueError, "W a positive multiple of the patch 2, got 0"),
    "size": ({"h": 12, "w": 12}, {}, ValueError, "H = W = 8.*got 12 x 12"),
    "channels": ({"c": 3}, {}, ValueError, "C = 4 channels, got 3"),
    "dtype": ({"dtype": torch.float16}, {}, TypeError, "weights' dtype torch.float32, got torch.float16"),
    "integer": ({"dtype": torch.int64}, {}, TypeError, "floating"),
    "missing y": ({}, {"y": None}, ValueError, "y must be given"),
    "y range": ({}, {"y": torch.tensor([1, 6])}, ValueError, r"y must be in \[0, 6\), got \[1, 6\]"),
    "y float": ({}, {"y": torch.tensor([1.0, 2.0])}, TypeError, "y must be int64 or int32"),
    "y bytes": ({}, {"y": torch.tensor([1, 2], dtype=torch.uint8)}, TypeError, "y must be int64 or int32"),
    "y shape": ({}, {"y": torch.tensor([1])}, ValueError, r"y must have shape \(2,\)"),
    "t shape": ({}, {"t": torch.tensor([1])}, ValueError, r"t must be \(B,\) with B = 2"),
    "t device": ({}, {"t": torch.empty(2, device="meta")}, ValueError, "t must be on x's device cpu, got meta"),
    "no tensor": ({}, {"x": [1]}, TypeError, "x must be a floating tensor, got list"),
    "rank": ({}, {"x": torch.zeros(2, 4, 8, 8)}, ValueError, r"x must be \(B, F, C, H, W\), got \(2, 4, 8, 8\)"),
    "y below": ({}, {"y": torch.tensor([-1, 0])}, ValueError, r"y must be in \[0, 6\), got \[-1, 0\]"),
    "device": ({"device": "meta"}, {}, ValueError, "x must be on the weights' device cpu, got meta"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str, pair: Any) -> None:
    shape, kwargs, kind, message = BAD[case]
    _, fast = pair(extras=2)
    s = {"frames": 3, "c": 4, "h": 8, "w": 8, "dtype": torch.float32, "device": "cpu"} | shape
    x = torch.zeros(2, s["frames"], s["c"], s["h"], s["w"], dtype=s["dtype"], device=s["device"])
    call = {"x": x, "t": torch.tensor([1, 2]), "y": torch.tensor([1, 2])} | kwargs
    with pytest.raises(kind, match=message):
        fast(**call)


def test_joint_needs_image_labels(pair: Any, inputs: Any) -> None:
    _, fast = pair(True, extras=2)
    args, kwargs = inputs(fast, images=2)
    with pytest.raises(ValueError, match="y_image must be given"):
        fast(*args, **kwargs | {"y_image": None})
    for images in (5, -1):
        with pytest.raises(ValueError, match=f"use_image_num must leave at least one of the 5 frames, got {images}"):
            fast(*args, **kwargs | {"use_image_num": images})
    labels = kwargs["y_image"]
    for wrong, kind, message in (
        (labels[:1], ValueError, r"y_image must have shape \(2, 2\), got \[\(2,\)\]"),
        ([labels[0], labels[1][:1]], ValueError, r"y_image must have shape \(2, 2\), got \[\(2,\), \(1,\)\]"),
        ([labels[0], labels[1].float()], TypeError, "y_image must be int64 or int32, got torch.float32"),
        ([labels[0], labels[1] + 9], ValueError, r"y_image must be in \[0, 6\)"),
    ):
        with pytest.raises(kind, match=message):
            fast(*args, **kwargs | {"y_image": wrong})
    rows = torch.stack(labels)
    assert torch.equal(fast.eval()(*args, **kwargs | {"y_image": rows}), fast(*args, **kwargs))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, r"text_embedding must be given \(B, ...\) with 59136 values, got None"),
        ((1, 77, 768), r"text_embedding must hold B = 2 rows of 59136, got \(1, 77, 768\)"),
        ((2, 77, 767), r"text_embedding must hold B = 2 rows of 59136, got \(2, 77, 767\)"),
    ],
)
def test_text_of_another_shape_is_refused(shape: tuple[int, ...] | None, message: str, pair: Any, inputs: Any) -> None:
    _, fast = pair(extras=78)
    args, _ = inputs(fast)
    with pytest.raises(ValueError, match=message):
        fast(*args, text_embedding=None if shape is None else torch.zeros(shape))


@pytest.mark.parametrize("name", ["extend_time", "extend_space"])
def test_an_attribute_that_is_no_choice_is_refused(name: str, pair: Any, inputs: Any) -> None:
    _, fast = pair(extras=1)
    args, _ = inputs(fast)
    setattr(fast, name, "sincoz")
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'sincoz'"):
        fast(*args)
