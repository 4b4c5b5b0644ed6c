"""Ranks that share clips: outputs, gradients, losses and files are those of one rank, and no token moves in vain."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latte_fast.config import LatteConfig
from latte_fast.modules.sequence import ParallelConfig, Shards
from latte_fast.ops.axis_exchange import shares
from latte_fast.parallel_cost import gathered_by_first, sent_by_first
from tests.helpers.sequence import LIMIT


def together(*options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.helpers.sequence", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


COUNTS = ("exchanged", "pieces", "saved", "refused")


@pytest.fixture(scope="module", params=[("3",), pytest.param(("2,3,4", "--all"), marks=pytest.mark.slow)])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(*request.param, "--folder", str(tmp_path_factory.mktemp("shared")))


def test_outputs_and_gradients_are_those_of_one_rank(result: list[dict[str, Any]]) -> None:
    for line in result[:-1]:
        for rank, found in enumerate(line["found"]):
            errors = {name: value for name, value in found.items() if name not in COUNTS}
            assert len(errors) >= 11
            for name, (output, gradient) in errors.items():
                assert output <= LIMIT and gradient <= LIMIT, (line["ranks"], rank, name, output, gradient)


def test_two_exchanges_around_attention_over_time(result: list[dict[str, Any]]) -> None:
    """Each moves (P-1) / P^2 of the tokens from a rank, up to a frame and a patch where P does not divide them."""
    for line in result[:-1]:
        count, sent = line["ranks"], [found["exchanged"] for found in line["found"]]
        held = shares(16, count)
        row = 2 * 32 * 4  # bytes of a token of both clips
        for rank, found in enumerate(sent):
            expected = held[rank] * (16 - held[rank]) * row
            assert found["bytes"] == [expected] * found["blocks"]
        counted = LatteConfig(hidden_size=32, num_heads=4, depth=sent[0]["blocks"])
        assert sum(sent[0]["bytes"]) == sent_by_first(counted, 2, 16, 16, count, bytes_each=4)
        assert sent[0]["gathered"] == gathered_by_first(counted, 2, 16, 16, count, bytes_each=4)
        pieces = [found["pieces"]["bytes"] for found in line["found"]]
        assert [len(each) for each in pieces] == [2 * sent[0]["blocks"]] * count
        assert sum(map(sum, pieces)) <= sum(sum(found["bytes"]) for found in sent) * 1.01
        if 16 % count == 0:
            assert sent[0]["bytes"][0] == (count - 1) / count**2 * 16 * 16 * row


def test_a_rank_keeps_its_part_for_the_backward(result: list[dict[str, Any]]) -> None:
    for line in result[:-1]:
        for found in line["found"]:
            alone, own = found["saved"]
            most = max(shares(16, line["ranks"])) / 16
            print(f"{line['ranks']} ranks: {own:,} of {alone:,} bytes kept, {own / alone:.3f}")
            assert own <= 1.1 * most * alone


def test_wrong_degrees_and_inputs_are_named_on_every_rank(result: list[dict[str, Any]]) -> None:
    for line in result[:-1]:
        for found in line["found"]:
            degree, kind, long, inputs = found["refused"]
            assert f"must divide the {line['ranks']} ranks" in degree and "must be a ParallelConfig" in kind
            assert "at most the clip's" in long and "the same on all ranks" in inputs


def test_training_is_that_of_one_rank(result: list[dict[str, Any]]) -> None:
    losses = result[-1]["losses"]
    assert len(losses["alone"]) in (12, 40) and len(set(losses["alone"])) == len(losses["alone"])
    assert {"two", "four, sharded"} <= losses.keys()
    for name in losses:
        assert losses[name] == pytest.approx(losses["alone"], rel=1e-5), name


def test_files_are_those_of_one_rank(result: list[dict[str, Any]]) -> None:
    """A level of 255 apart at most, in few pixels: where another rounding of a product tips one."""
    files = result[-1]["files"]
    assert {"alone", "tokens", "halves", "both"} <= files.keys()
    for name, (count, apart, share, frames) in files.items():
        assert count == 6 and apart <= 1 and share <= 1e-3, name
        assert sum(frames) == sum(files["alone"][3]) and max(frames) - min(frames) <= 4, (name, frames)


@pytest.mark.slow
def test_the_arithmetic_is_what_sockets_move() -> None:
    """Within a tenth, headers and acknowledgements included."""
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("no right to make a network namespace, in which nobody else's bytes are counted")
    command = [*alone, sys.executable, "-m", "tests.helpers.sequence", "2,4,8", "--link"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["ranks"] for line in lines] == [2, 4, 8]
    for line in lines:
        print(line, line["counted"] / line["simulated"])
        assert line["counted"] == pytest.approx(line["simulated"], rel=0.1)


@pytest.mark.parametrize(
    ("field", "value"), [("sequence", 0), ("sequence", True), ("cfg", 3), ("cfg", 1.5), ("pieces", 0)]
)
def test_wrong_configurations(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        ParallelConfig(**{field: value})  # type: ignore[arg-type]


def test_shares_cover_an_axis() -> None:
    for n in (1, 5, 16, 17):
        for ranks in range(1, n + 1):
            held = shares(n, ranks)
            assert sum(held) == n and max(held) - min(held) <= 1 and sorted(held, reverse=True) == held
            own = [Shards("", rank, ranks, n) for rank in range(ranks)]
            assert [s.begin for s in own] == [sum(held[:rank]) for rank in range(ranks)]
