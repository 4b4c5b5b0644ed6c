"""Tiles: the analytic default, a GPU's file over it, one warning without a file, and what measuring them keeps."""

import importlib
import json
import logging
from types import SimpleNamespace

import pytest
import torch

from latte_fast.kernels import flash_attention_fwd, norm_modulate, measure_tiles, tiles

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh():
    tiles.choose.cache_clear()
    yield
    tiles.choose.cache_clear()
    tiles.measured.cache_clear()


@pytest.mark.parametrize(("D", "warps"), [(64, 1), (384, 1), (768, 2), (1024, 2), (1152, 4), (1153, 4), (16384, 16)])
def test_rows_default_gives_a_thread_eight_values(D: int, warps: int) -> None:
    assert tiles.rows_default(D, 40).warps == warps


@pytest.mark.parametrize(("major", "block_n"), [(8, 32), (9, 64), (10, 64), (12, 32)])
def test_streamed_backward_fits_the_registers(monkeypatch, major: int, block_n: int) -> None:
    """Where products take their operands from registers, a block is half as long."""
    monkeypatch.setattr(tiles, "gpu_of", lambda device: tiles.Gpu("ahead", 100, major))
    q = torch.empty(1, 1, 256, 16, 72, device="meta", dtype=torch.bfloat16)
    assert flash_attention_fwd.config("flash_attention_dkdv", q, 256, 256).block_n == block_n


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
        (config,) = (tiles.choose(*key.split("/"), *args) for key, args in measure_tiles.chosen(launch).items())
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
    assert again == {"norm_modulate_fwd/D64-fp32": {"warps": 1, "stages": 3, "programs_per_sm": 32}}
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
    monkeypatch.setattr(torch, "empty", lambda *a, **k: SimpleNamespace(zero_=lambda: seen.append("flush")))
    assert measure_tiles.milliseconds(lambda: seen.append("launch"), repetitions=1) == 2.0
    assert seen == ["launch"] * 3 + ["flush"] * 8 + ["event", "launch", "event", "wait"]


def test_command_keeps_what_it_measured_when_cut_off(monkeypatch) -> None:
    tune, saved = importlib.import_module("latte_fast.cli.tune"), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tune, "cudnn_choices", lambda *args: {})
    monkeypatch.setattr(tune, "launches", lambda *args: ["first", "cut off"])
    monkeypatch.setattr(measure_tiles, "save", lambda found, device: saved.append(found))

    def measure(launches: list[str]) -> dict:
        if "cut off" in launches:
            raise KeyboardInterrupt
        return {"kernel/shape": {"warps": 2}}

    monkeypatch.setattr(measure_tiles, "tune", measure)
    with pytest.raises(KeyboardInterrupt):
        tune.tune(sizes=("XL",))
    assert saved == [{}, {"kernel/shape": {"warps": 2}}]


def test_command_visits_every_kernel(monkeypatch) -> None:
    """What `latte-fast tune` launches, at a tiny size: forward and backward of every op ask for their tiles."""
    tune = importlib.import_module("latte_fast.cli.tune")  # the package has the function under that name
    monkeypatch.setattr(tune, "FRAMES", 2)
    monkeypatch.setattr(tune, "PATCHES", 40)
    monkeypatch.setitem(tune.SIZES, "S", (2, 64, 1))
    asked = set()
    for launch in tune.launches("S", torch.float32, 1, tiles_device().type):
        asked |= {key.split("/")[0] for key in measure_tiles.chosen(launch)}
    rows = {f"{op}_{way}" for way in ("fwd", "bwd") for op in ("norm_modulate", "gate_residual", "bias_gelu")}
    assert rows | {"packed_attention_fwd", "packed_attention_bwd", "flash_attention_fwd"} <= asked, asked
    assert len(asked) == 13, asked  # four row ops both ways, two packed kernels, three streamed ones


def tiles_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
