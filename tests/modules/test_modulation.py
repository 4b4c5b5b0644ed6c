"""Modulations out of a table: the same numbers as the model's own, fewer launches, products that no step adds to."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latte_fast import Latte, testing
from latte_fast.models.flexdit.model import FlexLatte
from latte_fast.models.flexdit.text_model import FlexLatteT2V
from latte_fast.models.latte import modulation as of_latte
from latte_fast.models.latte_t2v import modulation as of_t2v
from latte_fast.modules.modulation import ModulationTable
from latte_fast.testing import relative_error
from tests.helpers import t2v
from tests.helpers.counting import Count

SMALL: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "depth": 4, "num_heads": 2, "num_frames": 2}
STEPS = torch.tensor([900, 500, 20])


def latte(**changes: Any) -> tuple[Any, Any, Any]:
    kwargs = SMALL | {"extras": 2, "num_classes": 5} | changes
    model = testing.refill(Latte(**kwargs)).eval()
    x = torch.randn(4, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([3, 1, 5, 5]) if kwargs["extras"] == 2 else None
    words = torch.randn(4, 77, 768, generator=torch.Generator().manual_seed(2)) if kwargs["extras"] == 78 else None

    def call(rows: int, t: int) -> Tensor:
        given = {"y": y, "text_embedding": words}
        return model(x[:rows], torch.full((rows,), t), **{n: None if v is None else v[:rows] for n, v in given.items()})

    return model, call, lambda times: of_latte.tabulate(model, times, y, words)


def plain_of(**changes: Any) -> Any:
    return lambda: latte(**changes)


def flex() -> tuple[Any, Any, Any]:
    kwargs = SMALL | {"depth": 6, "extras": 2, "num_classes": 5}
    model = testing.refill(FlexLatte(**kwargs, layout="PD GSRD", sides=(2, 3), patch_size=2)).eval()
    x = torch.randn(4, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([3, 3, 5, 5])
    call = lambda rows, t: model(x[:rows], torch.full((rows,), t), y[:rows], side=2)  # noqa: E731
    return model, call, lambda times: of_latte.tabulate(model, times, y)


def text() -> tuple[Any, Any, Any]:
    _, model = t2v.pair()
    return of_text(model.eval(), 3)


def of_text(model: Any, frames: int, **given: Any) -> tuple[Any, Any, Any]:
    x, _, words, *_ = t2v.inputs(frames, 8, 8)
    x, words = (torch.cat([v, v])[:4] for v in (x, words))
    call = lambda rows, t: model(x[:rows], torch.full((rows,), t), words[:rows], **given).sample  # noqa: E731
    return model, call, lambda times: of_t2v.tabulate(model, times)


def flex_text() -> tuple[Any, Any, Any]:
    kwargs = t2v.SMALL | {"num_layers": 5, "layout": "PD GR D".replace(" ", ""), "sides": (2,)}
    torch.manual_seed(0)
    return of_text(testing.refill(FlexLatteT2V(**kwargs)).eval(), 3, side=2)


MODELS = {
    "classes": plain_of(),
    "unconditional": plain_of(extras=1),
    "text-embedding": plain_of(extras=78),
    "variant-3": plain_of(variant=3),
    "flex": flex,
    "text": text,
    "flex-text": flex_text,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers(name: str) -> None:
    """All rows, and the first half of a batch alone, at each step; a table of other steps gives others."""
    model, call, tabulate = MODELS[name]()
    with torch.no_grad():
        table: ModulationTable = tabulate(STEPS)
        for n, t in enumerate(STEPS.tolist()):
            for rows in (4, 2):
                want = call(rows, t)
                with table.attached(model):
                    table.select(n)
                    assert relative_error(call(rows, t), want) <= 3e-6
                    table.select((n + 1) % 3)
                    assert relative_error(call(rows, t), want) > 1e-3
        assert model.modulation_table is None and torch.equal(call(4, 20), call(4, 20))


def products(count: Count) -> Counter[str]:
    return Counter({name: count.ran[name] for name in ("addmm", "mm", "linear") if count.ran[name]})


@pytest.mark.parametrize("name", ["classes", "text"])
def test_a_block_has_one_launch_less(name: str) -> None:
    model, call, tabulate = MODELS[name]()
    blocks = len(list(model.blocks))
    with torch.no_grad():
        call(4, 500)
        with Count() as own:
            call(4, 500)
        table = tabulate(STEPS)
        with table.attached(model), Count() as from_table:
            table.select(1)
            call(4, 500)
    saved = sum(own.ran.values()) - sum(from_table.ran.values())
    # of each block its product (with text the sum with its own table), and at least the embedding of the step
    assert saved >= blocks + 4
    fewer = products(own) - products(from_table)
    assert sum(fewer.values()) == {"classes": blocks + 1 + 2, "text": 1 + 2}[name]


@pytest.mark.parametrize("name", ["classes", "text"])
def test_products_do_not_depend_on_the_steps(name: str) -> None:
    model, _, tabulate = MODELS[name]()
    ran = []
    for steps in (2, 9):
        with Count() as count:
            tabulate(torch.arange(steps))
        ran.append(products(count))
    assert ran[0] == ran[1] and sum(ran[0].values()) == {"classes": len(model.blocks) + 1 + 2, "text": 3}[name]


def test_values_are_rounded_once() -> None:
    """A bf16 model's table is that of its weights in fp32, rounded."""
    model, _, tabulate = latte()
    model.bfloat16()
    table: ModulationTable = tabulate(STEPS)
    wide = of_latte.tabulate(model.float(), STEPS, torch.tensor([3, 1, 5, 5]))
    assert table.values.dtype == torch.bfloat16 and torch.equal(table.values, wide.values.bfloat16())
    assert table.values.shape[1] == 3  # as many as there are different labels


def test_refusals() -> None:
    model, _, tabulate = latte()
    table: ModulationTable = tabulate(STEPS)
    with table.attached(model), pytest.raises(ValueError, match="another run with a table"), table.attached(model):
        pass
    with pytest.raises(ValueError, match="batch must be at most 4, got 5"):
        table.at(5)
    model.blocks[1].adaLN_modulation[1].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="must be plain linear layers without adapters and hooks"):
        tabulate(STEPS)
    *_, of_tokens = latte(conditioning="tokens")
    with pytest.raises(ValueError, match="model must be modulated"):
        of_tokens(STEPS)


def test_another_weight_is_seen() -> None:
    """The table is made of the model's own layers, each at its place: exchanged layers give other numbers."""
    model, call, tabulate = latte()
    with torch.no_grad():
        table: ModulationTable = tabulate(STEPS)
        first, second = (model.blocks[i].adaLN_modulation[1] for i in (0, 1))
        model.blocks[0].adaLN_modulation[1], model.blocks[1].adaLN_modulation[1] = second, first
        want = call(4, 500)
        with table.attached(model):
            table.select(1)
            assert relative_error(call(4, 500), want) > 1e-3
        again: ModulationTable = tabulate(STEPS)
        with again.attached(model):
            again.select(1)
            got: Tensor = call(4, 500)
        assert relative_error(got, want) <= 3e-6
    assert isinstance(model, nn.Module)
