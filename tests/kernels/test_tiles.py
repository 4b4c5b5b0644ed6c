"""Tiles: the analytic default, a GPU's file over it, one warning without a file, and what measuring them keeps."""

import importlib
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from latte_fast import use_backend
from latte_fast.kernels import flash_attention_fwd, measure_tiles, norm_modulate, tiles
from latte_fast.ops.sizes import Sizes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh():
    tiles.choose.cache_clear()
    yield
    tiles.choose.cache_clear()
    tiles.measured.cache_clear()


@pytest.mark.parametrize(("D", "warps"), [(64, 1), (384, 1), (768, 2), (1152, 2), (1280, 2), (1281, 4), (16384, 16)])
def test_rows_default_gives_a_thread_twenty_values_at_most(D: int, warps: int) -> None:
    assert tiles.rows_default(D, 40).warps == warps


@pytest.mark.parametrize(("major", "block_n"), [(8, 32), (9, 64), (10, 64), (12, 32)])
def test_streamed_backward_fits_the_registers(monkeypatch, major: int, block_n: int) -> None:
    """Where products take their operands from registers, a block is half as long."""
    monkeypatch.setattr(tiles, "gpu_of", lambda device: tiles.Gpu("ahead", 100, major))
    q = torch.empty(1, 1, 256, 16, 72, device="meta", dtype=torch.bfloat16)
    assert flash_attention_fwd.config("flash_attention_dkdv", q, 256, 256).block_n == block_n
    for kernel in ("fwd", "dq", "dkdv"):
        stages = flash_attention_fwd.config(f"flash_attention_{kernel}", q, 256, 256).stages
        assert stages == (2 if major == 10 else 3)  # a tile is under way while a turn waits for its own
        assert flash_attention_fwd.config(f"flash_attention_{kernel}", q[..., :64], 256, 256).stages == 3
    limit = flash_attention_fwd.register_limit(q, flash_attention_fwd.config("flash_attention_fwd", q, 256, 256), True)
    assert limit == ({"maxnreg": 128} if major in (9, 10) else {})


def test_file_overrides_the_default(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tiles, "CONFIGS", tmp_path)
    monkeypatch.setattr(tiles, "gpu_of", lambda device: tiles.Gpu("NVIDIA X-1 80GB", 100, 9))
    stored = {"packed_attention_fwd/T16-K72-bf16": {"pack": 8}}
    (tmp_path / "nvidia_x_1_80gb.json").write_text(json.dumps({"configs": stored}))
    default = tiles.PackedConfig(pack=4, warps=4)
    assert tiles.choose("packed_attention_fwd", "T16-K72-bf16", default, CPU) == tiles.PackedConfig(pack=8, warps=4)
    assert tiles.choose("packed_attention_fwd", "T16-K64-bf16", default, CPU) == default


def test_missing_file_warns_once(monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setattr(tiles, "CONFIGS", tmp_path)
    with caplog.at_level(logging.WARNING, logger="latte_fast"):
        tiles.measured("NVIDIA X-1")
        tiles.measured("NVIDIA X-1")
    assert [r.getMessage() for r in caplog.records if "latte-fast tune" in r.getMessage()] == [
        "latte_fast: no tuned tiles for NVIDIA X-1, so analytic ones; `latte-fast tune` measures them"
    ]


def test_measuring_keeps_the_fastest(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tiles, "CONFIGS", tmp_path)
    device = tiles_device()
    x, m = torch.randn(2, 64, device=device), torch.randn(1, 64, device=device)

    def launch() -> None:
        norm_modulate.norm_modulate_fwd(x, m, m, 1e-6, x.dtype)

    def timer(launch) -> float:
        (config,) = (tiles.choose(*key.split("/"), *args) for key, args in measure_tiles.chosen_tiles(launch).items())
        return 1.0 + abs(config.warps - 2) + abs(config.stages - 4)

    best = measure_tiles.tune([launch], timer)
    assert best.keys() == {"norm_modulate_fwd/D64-fp32"}
    assert best["norm_modulate_fwd/D64-fp32"] | {"programs_per_sm": 0} == {
        "warps": 2,
        "stages": 4,
        "programs_per_sm": 0,
    }
    measure_tiles.save(best, device)
    file = tmp_path / f"{tiles.file_stem(tiles.gpu_of(device).name)}.json"
    assert json.loads(file.read_text())["configs"] == best
    # measured anew, the analytic tile is as fast as any: it replaces what was stored
    again = measure_tiles.tune([launch], lambda launch: 1.0)
    assert again == {"norm_modulate_fwd/D64-fp32": {"warps": 1, "stages": 3, "programs_per_sm": 28}}
    measure_tiles.save(again, device)
    assert json.loads(file.read_text())["configs"] == again


def test_timer_queues_launches_behind_work(monkeypatch) -> None:
    """Between the events lies the launch alone, and before them enough for the GPU to do until it is queued."""
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            self.record = lambda: seen.append("event")
            self.synchronize = lambda: seen.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    with monkeypatch.context() as patch:  # given back before the poison of torch.empty is
        patch.setattr(torch, "empty", lambda *a, **k: SimpleNamespace(zero_=lambda: seen.append("flush")))
        assert measure_tiles.milliseconds(lambda: seen.append("launch"), repetitions=1) == 2.0
    assert seen == ["launch"] * 3 + ["flush"] * 8 + ["event", "launch", "event", "wait"]


def command(monkeypatch, cases: list) -> tuple[object, list]:
    """`latte-fast tune` on a GPU that is not there, with cases of its own; and what it saves."""
    tune, saved = importlib.import_module("latte_fast.cli.tune"), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tune, "measurements", lambda *args: iter(cases))
    monkeypatch.setattr(measure_tiles, "save", lambda found, device: saved.append(found))
    return tune, saved


def cut_off() -> dict:
    raise KeyboardInterrupt


def test_command_goes_on_where_it_was_cut_off(monkeypatch, tmp_path) -> None:
    first, last = {"kernel/shape": {"warps": 2}}, {"kernel/other": {"warps": 4}}
    tune, saved = command(monkeypatch, [("first", lambda: first), ("second", cut_off)])
    with pytest.raises(KeyboardInterrupt):
        tune.tune(resume=tmp_path / "done")
    assert saved == [first] and (tmp_path / "done").read_text() == "first\n"
    tune, saved = command(monkeypatch, [("first", cut_off), ("second", lambda: last)])
    tune.tune(resume=tmp_path / "done")
    assert saved == [last] and (tmp_path / "done").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("runs", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["launches", "runs"])
def test_command_visits_every_kernel(runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `latte-fast tune` launches, at a tiny size: forward and backward of every op ask for their tiles.

    A launcher asks before its kernel starts, so the interpreter need not run what the other tests do.
    """
    if not runs:
        monkeypatch.setattr("triton.runtime.interpreter.GridExecutor.__call__", lambda self, *args, **kwargs: None)
    tune = importlib.import_module("latte_fast.cli.tune")  # the package has the function under that name
    sizes = Sizes(1, frames=1, patches=33, width=64, heads=1, device=tiles_device(), dtype=torch.float32, words=40)
    asked = set()
    for _, made in tune.launches(sizes):
        asked |= measure_tiles.chosen_tiles(made()).keys()
    rows = {f"{op}_{way}" for way in ("fwd", "bwd") for op in ("norm_modulate", "gate_residual", "bias_gelu")}
    kernels = {key.split("/")[0] for key in asked}
    assert rows | {"packed_attention_fwd", "packed_attention_bwd", "flash_attention_fwd"} <= kernels, kernels
    eight = {
        f"{name}_{kind}_fwd"
        for name in ("norm_modulate", "gate_residual_norm_modulate", "bias_gelu", "rows")
        for kind in ("fp8", "int8")
    }
    assert eight <= kernels
    # five row ops both ways, two packed kernels, three streamed ones; norm_silu_halo both ways, nearest_code, the
    # two of decoding and the three of causal attention
    assert len(kernels - eight) == 23, kernels
    # at 256 px and at 512 px
    for kernel in ("fwd", "dq", "dkdv"):
        assert {f"flash_attention_{kernel}/T{n}-K64-fp32" for n in (64, 256)} <= asked
    names = [name for name, _ in tune.launches(replace(sizes, device=torch.device("meta")))]
    assert {"text forward", "text at 512 px backward", "space at 512 px forward"} <= set(names)


def test_the_fastest_library_is_taken_where_it_is_two_percent_faster(monkeypatch) -> None:
    tune = importlib.import_module("latte_fast.cli.tune")
    q, k, v = torch.randn(3, 1, 2, 40, 1, 64, device=tiles_device()).unbind(0)
    real, times = tune.backends.why_not, {"triton": 1.0}
    monkeypatch.setattr(tune.backends, "why_not", lambda op, name, *a: None if name in times else "not here")
    asked: list[str] = []

    def ours(axis_attention: str) -> use_backend:
        asked.append(axis_attention)
        return use_backend("triton")

    monkeypatch.setattr(tune, "use_backend", ours)

    def timer(step) -> float:
        with monkeypatch.context() as context:
            context.setattr(tune.backends, "why_not", real)
            step()
        if times[asked[-1]] < 0:
            raise RuntimeError("no kernel\nfor this shape")
        return times[asked[-1]]

    def choice(grad: bool = False) -> dict:
        return tune.attention_choices(q, k, v, grad, timer)

    key = "axis_attention/space-40x40-K64-float32"
    assert choice() == {key: {"backend": "triton"}}
    times |= {"cudnn": 0.99, "sdpa": 0.985}
    assert choice() == {key: {"backend": "triton"}}
    times["cudnn"] = 0.9
    assert choice() == {key: {"backend": "cudnn"}} and asked[-3:] == ["triton", "cudnn", "sdpa"]
    times["cudnn"] = -1.0
    times["sdpa"] = 0.5
    assert choice(grad=True) == {f"{key}-grad": {"backend": "sdpa"}}


def tiles_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
