"""What measures decoding runs at tiny sizes, checks what it times, and keeps a line for each result."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import whole_clip


def test_whole_clip(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    file = tmp_path / "clip.jsonl"
    try:
        found = whole_clip.main(["--tiny", "--threads", "1", "--rounds", "2", "--results", str(file)])
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["rounds"] for line in lines] == [1, 2]
    assert all(len(times) == 8 and min(times) > 0 for line in lines for times in line["parts"].values())
    for name, seconds in found["seconds"].items():
        pairs = zip(lines[0]["parts"][name], lines[1]["parts"][name], strict=True)
        assert seconds == pytest.approx(sum(min(pair) for pair in pairs))
        assert seconds <= sum(lines[1]["parts"][name])
    assert found["of_the_read"] == found["seconds"]["ours"] / found["seconds"]["a bare read of the weights"]


def test_whole_clip_checks_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token that ours decodes at another position is found before a time is kept."""
    go_on = whole_clip.Ours.go_on

    def shifted(self: whole_clip.Ours, tokens: torch.Tensor) -> torch.Tensor:
        self.decoder.seek(self.decoder.filled, max(1, self.decoder.position - 1))
        return go_on(self, tokens)

    monkeypatch.setattr(whole_clip.Ours, "go_on", shifted)
    file = tmp_path / "clip.jsonl"
    with pytest.raises(AssertionError, match="logits"):
        whole_clip.main(["--tiny", "--threads", str(torch.get_num_threads()), "--results", str(file)])
    assert not file.exists()
