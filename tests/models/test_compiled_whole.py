"""A whole model as one graph of torch.compile: what is in the graph, and that no weight is copied in it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from latte_fast import Latte, LatteT2V, testing
from latte_fast.modules.linear import joined_product, share_storage
from tests.helpers.t2v import SMALL, inputs, pair


def ops_of(model: nn.Module, call: Callable[[nn.Module], Any]) -> tuple[Any, Counter[str], list[Any]]:
    """Returns what a model under torch.compile returns, the ops of its one graph by name, and its nodes."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, given: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        out = call(
            torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep, inference_compiler=keep))
        )
    assert len(graphs) == 1
    nodes = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    return out, Counter(str(node.target) for node in nodes), nodes


def reads_a_weight(node: Any) -> bool:
    """Whether a node's result holds as many values as a weight of the tiny model and is made of the weights alone."""
    return all(arg.op == "placeholder" for arg in node.all_input_nodes) and node.meta["val"].numel() > 40 * 40


def test_text_to_video_reads_q_k_v_weights_where_they_lie() -> None:
    oracle, fast = pair(num_layers=1)
    x, t, text, mask = inputs(3, 8, 8)
    exact = oracle(x, t % 10, text, mask)
    out, ops, nodes = ops_of(fast.eval(), lambda model: model(x, t % 10, text, mask, return_dict=False)[0])
    assert testing.relative_error(out, exact) <= 3e-6
    blocks = len(fast.transformer_blocks) + len(fast.temporal_transformer_blocks)
    assert ops["latte_fast.joined_linear.default"] == blocks
    copies = [n for n in nodes if "cat" in str(n.target) or "clone" in str(n.target)]
    assert not [n for n in copies if reads_a_weight(n)]


@pytest.mark.parametrize("shared", [True, False])
def test_joined_linear_where_weights_lie_apart(shared: bool) -> None:
    """One matrix or three, the op gives what the layers give."""
    layers = nn.ModuleList(nn.Linear(16, n, bias=True) for n in (8, 8, 24))
    assert not shared or share_storage(list(layers))
    x = torch.randn(2, 3, 16)
    assert joined_product(list(layers), x) is None  # nothing traces
    for grad in (False, True):
        found = []

        def run(x: Tensor, found: list = found) -> Tensor:
            y = joined_product(list(layers), x)
            found.append(y is None)
            return torch.cat([layer(x) for layer in layers], -1) if y is None else y

        torch._dynamo.reset()
        with torch.set_grad_enabled(grad):
            got = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(got, torch.cat([layer(x) for layer in layers], -1))
    assert torch.library.opcheck(
        torch.ops.latte_fast.joined_linear.default,
        (x, [layer.weight.detach() for layer in layers], [layer.bias.detach() for layer in layers]),
    )


@pytest.mark.slow
def test_classes_model_is_one_graph_of_few_ops() -> None:
    """No graph break, no copy of a weight."""
    kwargs = {"input_size": 8, "depth": 2, "hidden_size": 48, "num_heads": 2, "num_frames": 3, "num_classes": 5}
    model = Latte(**kwargs, extras=2).eval()
    testing.refill(model)
    x, t, y = torch.randn(2, 3, 4, 8, 8), torch.tensor([3, 500]), torch.tensor([1, 4])
    with torch.no_grad():
        want = model(x, t, y)
    out, _, nodes = ops_of(model, lambda m: m(x, t, y))
    assert testing.relative_error(out, want) <= 3e-6
    copies = [n for n in nodes if "cat" in str(n.target) or "clone" in str(n.target)]
    assert not [n for n in copies if reads_a_weight(n)]


@pytest.mark.slow
def test_nothing_is_made_on_another_device() -> None:
    """A tensor made on the CPU would keep torch.compile from a CUDA graph; the meta device stands for the GPU."""
    with torch.device("meta"):
        model = LatteT2V(**SMALL).eval()
        x, text = torch.empty(2, 4, 3, 8, 8), torch.empty(2, 7, 40)
        t, mask = torch.empty(2, dtype=torch.long), torch.ones(2, 7)
    _, _, nodes = ops_of(model, lambda m: m(x, t, text, mask, return_dict=False)[0])
    assert {node.meta["val"].device.type for node in nodes if isinstance(node.meta["val"], Tensor)} == {"meta"}
