"""Predicted times: what each unit of a multiprocessor needs, the largest of which is a kernel's floor."""

import pytest

from benchmarks import predict

RECORD = {"size": "XL", "dtype": "bf16", "target": 90, "triton": "3.6.0"}
RECORD |= {"warps": 4, "total": 500, "issued": 400, "fmas": 0, "special": 0}


def test_a_pass_over_rows_takes_its_bytes_or_its_instructions() -> None:
    rows = predict.Work("norm_modulate_fwd", predict.TOKENS, 0, 2)
    found = predict.microseconds(rows, RECORD, "H200")
    assert found["bytes"] == pytest.approx(1e6 * 2 * 4096 * 1152 * 2 / 4.3e12)
    # four warps have a scheduler each, so a multiprocessor issues a row's 400 instructions in 400 clocks
    assert found["issue"] == pytest.approx(1e6 * 400 * 4096 / 132 / 1.98e9)
    assert predict.microseconds(rows, RECORD | {"warps": 2}, "H200")["issue"] == pytest.approx(found["issue"] / 2)
    assert found["MMA"] == found["MUFU"] == 0


def test_attention_goes_around_for_each_block_of_keys() -> None:
    work = predict.streamed("flash_attention_fwd (space)", 256, 128, 64, 4)
    assert (work.programs, work.turns) == (16 * 16 * 2, 16 * 16 * 2 * 4)
    found = predict.microseconds(work, RECORD | {"warps": 8, "fmas": 163840, "special": 34}, "H100")
    # 80 + 80 of a head of 72: 128 queries x 64 keys a turn, at 2048 multiply-adds a clock
    assert found["MMA"] == pytest.approx(1e6 * 128 * 64 * 160 * 2048 / 2048 / 132 / 1.98e9)
    assert found["MUFU"] == pytest.approx(1e6 * 34 * 8 * 32 * 2048 / 16 / 132 / 1.98e9)
    # 100 instructions lie around the loop
    assert found["issue"] == pytest.approx(1e6 * (400 * 2048 + 100 * 512) * 8 / 4 / 132 / 1.98e9)


def test_tables_name_every_kernel_and_what_binds_it() -> None:
    text = predict.tables([RECORD | {"name": work.name} for work in predict.KERNELS])
    assert all(f"| `{work.name}` |" in text for work in predict.KERNELS)
    assert "Triton 3.6.0" in text and "Arithmetic, no measurement" in text and "(issue)" in text and "(bytes)" in text
    assert all(f"| {block} |" in text for block in predict.BLOCKS)


def test_a_page_keeps_what_lies_around_its_prediction() -> None:
    page = "before\n<!-- predicted by benchmarks/predict.py -->\nold\n<!-- end of prediction -->\nafter\n"
    assert "old" not in (new := predict.write(page, "new")) and new.startswith("before") and new.endswith("after\n")
    assert predict.write(new, "new") == new
    with pytest.raises(SystemExit, match="wants one place"):
        predict.write("nothing", "new")
