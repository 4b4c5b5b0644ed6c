"""Datasets from upstream's folders: what an item is, that it depends on its key alone, what is said of bad input."""

import logging
import pickle
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latte_fast.data import DataConfig, GlobalSampler, open_dataset, shapes
from latte_fast.data.layouts import LayoutError, files, natural
from latte_fast.data.seeding import draw_places
from latte_fast.media.formats import VIDEOS
from latte_fast.media.picture import fit
from latte_fast.media.pixels import normalise
from latte_fast.media.video import VideoError
from tests.helpers.films import decode, encode, frame_folder, layout, moving

KINDS = ("ffs", "ucf101", "sky", "taichi", "videos", "frames")
CLASSES = {"ucf101": ["ApplyLipstick", "Archery", "HandstandPushups"], "videos": ["a", "b"], "frames": ["a", "b"]}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", KINDS)
def test_item_of_each_layout(tmp_path: Path, kind: str) -> None:
    data = open_dataset(DataConfig(kind=kind, path=str(layout(kind, tmp_path)), interval=2), 4, 16, images=2)
    assert len(data) == 3 and data.classes == CLASSES.get(kind, [])
    items = [data[2, i] for i in range(3)]
    for item in items:
        assert item["video"].shape == (6, 3, 16, 16) and item["video"].dtype == torch.float32
        assert item["video"].min() >= -1 and item["video"].max() <= 1 and item["video"].std() > 0.1
        assert item.keys() == ({"video", "label", "image_labels"} if data.classes else {"video"})
    if data.classes:
        assert [int(item["label"]) for item in items] == ([0, 1, 2] if kind == "ucf101" else [0, 1, 1])
        assert items[0]["label"].dtype == items[0]["image_labels"].dtype == torch.int64
    assert not same(items[0], data[3, 0]) and same(data[0, 1], data[1])
    assert sum(1 for _ in data) == 3


@pytest.mark.parametrize("kind", ["videos", "sky"])
def test_items_depend_on_seed_epoch_and_index_alone(tmp_path: Path, kind: str) -> None:
    config = DataConfig(kind=kind, path=str(layout(kind, tmp_path)), flip=True, interval=2)
    data = open_dataset(config, 3, 16, images=1)
    wanted = [data[pair] for pair in islice(GlobalSampler(3, 2, 0), 8)]
    for workers in (1, 2):
        loader = DataLoader(data, batch_size=2, sampler=GlobalSampler(3, 2, 0), num_workers=workers)
        for k, batch in enumerate(islice(loader, 4)):
            assert torch.equal(batch["video"], torch.stack([wanted[2 * k]["video"], wanted[2 * k + 1]["video"]]))
    again = pickle.loads(pickle.dumps(data))
    assert all(same(again[pair], item) for pair, item in zip(islice(GlobalSampler(3, 2, 0), 8), wanted, strict=True))
    other = open_dataset(DataConfig(kind=kind, path=config.path, seed=1, flip=True, interval=2), 3, 16, images=1)
    assert not all(same(other[e, 0], data[e, 0]) for e in range(4))


def test_clip_is_the_videos_frames_at_the_exact_interval(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving(20, 32, 32))
    full = normalise(fit(decode(path), 32))
    data = open_dataset(DataConfig(kind="videos", path=str(tmp_path), interval=5, flip=True), 4, 32)
    seen = set()
    for epoch in range(60):
        video = data[epoch, 0]["video"]
        found = [(s, f) for s in range(5) for f in (0, 1)
                 if torch.equal(video, full[s : s + 16 : 5].flip(-1) if f else full[s : s + 16 : 5])]  # fmt: skip
        assert len(found) == 1
        seen.add(found[0])
    assert seen == {(s, f) for s in range(5) for f in (0, 1)}  # the last valid start and both mirrorings among them


def test_draw_places_of_short_videos_start_over() -> None:
    for number in range(50):
        places = draw_places(np.random.default_rng(number), 7, 4, 3)
        assert all((b - a) % 7 == 3 for a, b in pairwise(places))
    assert draw_places(np.random.default_rng(0), 1, 3, 3) == [0, 0, 0]


def test_short_videos_are_left_out_or_looped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encode(tmp_path / "long.mp4", moving(10, 32, 32))
    encode(tmp_path / "short.mp4", moving(9, 32, 32))
    config = DataConfig(kind="videos", path=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        data = open_dataset(config, 4, 16)
    assert len(data) == 1 and data.skipped == 1
    assert "1 of 2 videos have fewer than 10 frames" in caplog.text
    looped = open_dataset(DataConfig(kind="videos", path=str(tmp_path), short="loop"), 4, 16)
    assert len(looped) == 2 and looped.skipped == 0 and looped[1]["video"].shape == (4, 3, 16, 16)
    with pytest.raises(ValueError, match=r"at least 16 frames .* got 10 in the longest of 2"):
        open_dataset(config, 6, 16)


@pytest.mark.parametrize("height", [16, 17, 31, 49, 98, 491])
@pytest.mark.parametrize("width", [16, 33, 130])
def test_fit_is_never_off_by_one(height: int, width: int) -> None:
    picture = np.zeros((2, height, width, 3), np.uint8)
    picture[:, (height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1] = 255
    out = fit(picture, 16).float()
    assert out.shape == (2, 3, 16, 16)
    # the centre stays in the centre, to half a pixel of the source
    weight = out[0, 0] / out[0, 0].sum()
    centre = (weight.sum(1) * (torch.arange(16) + 0.5)).sum(), (weight.sum(0) * (torch.arange(16) + 0.5)).sum()
    assert all(abs(c - 8) <= 0.5 * 16 / min(height, width) + 0.1 for c in centre)


def test_fit_leaves_the_right_size_untouched_and_scales_antialiased() -> None:
    same_size = moving(1, 16, 20)
    assert np.array_equal(fit(same_size, 16)[0].permute(1, 2, 0), same_size[0, :, 2:18])
    stripes = np.zeros((1, 128, 128, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert fit(stripes, 16).float().sub(127.5).abs().max() < 12  # point sampling would give 0 or 255


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    """Two of them in one folder were walked for ever, one 40 times; a link elsewhere is followed."""
    for name in ("set/a", "set/b", "elsewhere"):
        encode(tmp_path / name / "clip.mp4", moving(3))
    (tmp_path / "set" / "c").symlink_to(tmp_path / "elsewhere")
    for name, target in (("a/up", ".."), ("a/out", tmp_path), ("a/to_b", "../b"), ("b/to_a", "../a"), ("a/self", ".")):
        (tmp_path / "set" / name).symlink_to(target)
    found = [path.relative_to(tmp_path / "set").as_posix() for path in files(tmp_path / "set", VIDEOS)]
    assert found == ["a/clip.mp4", "a/to_b/clip.mp4", "b/clip.mp4", "b/to_a/clip.mp4", "c/clip.mp4"]


def test_natural_order() -> None:
    names = ["X_2_frames_10.jpg", "X_2_frames_9.jpg", "X_2_frames_010.jpg", "a", "1"]
    assert sorted(names, key=natural) == ["1", "X_2_frames_9.jpg", "X_2_frames_010.jpg", "X_2_frames_10.jpg", "a"]
    assert sorted(["a.jpg2.jpg", "a.jpg"], key=natural) == ["a.jpg", "a.jpg2.jpg"]


def test_frame_folders_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    video = moving(12, 16, 16)
    frame_folder(tmp_path / "c", video, "f_{}.png")
    data = open_dataset(DataConfig(kind="taichi", path=str(tmp_path), interval=1), 12, 16)
    assert torch.equal(data[0]["video"], normalise(torch.from_numpy(video).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_broken_videos(tmp_path: Path, caplog: pytest.LogCaptureFixture, on_error: str) -> None:
    layout("taichi", tmp_path)
    for picture in (tmp_path / "clip#1").iterdir():
        picture.write_bytes(picture.read_bytes()[:50])
    config = DataConfig(kind="taichi", path=str(tmp_path), on_error=on_error)
    data = open_dataset(config, 2, 16)
    if on_error == "raise":
        with pytest.raises(VideoError, match="clip#1"):
            data[0, 1]
        return
    with caplog.at_level(logging.WARNING):
        items = [data[e, 1] for e in range(5)]
    assert data.broken == 1 and caplog.text.count("clip#1") == 1
    assert all(same(item, open_dataset(config, 2, 16)[e, 1]) for e, item in enumerate(items))
    # a worker's find is counted here, and is not reported a second time
    fresh = open_dataset(config, 2, 16)
    list(DataLoader(fresh, num_workers=1))
    assert fresh.broken == 1


def test_videos_that_do_not_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout("ffs", tmp_path)
    (tmp_path / "train" / "broken.mp4").write_text("no video")
    (tmp_path / "train" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    config = DataConfig(kind="ffs", path=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        data = open_dataset(config, 2, 16)
    assert len(data) == 3 and data.broken == 2
    assert caplog.text.count("broken.mp4") == 1 and caplog.text.count("gone.mp4: No such file") == 1
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        open_dataset(DataConfig(kind="ffs", path=str(tmp_path), on_error="raise"), 2, 16)


def test_a_set_of_broken_videos_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(LayoutError, match=r"none of the 1 videos .* can be opened; the first: .*a\.mp4"):
        open_dataset(DataConfig(kind="ffs", path=str(tmp_path)), 2, 16)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.png").write_bytes(b"\x89PNG")
    data = open_dataset(DataConfig(kind="taichi", path=str(tmp_path)), 1, 16)
    with pytest.raises(VideoError, match="16 videos in a row do not decode"):
        data[0]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_folders_show_the_expected_tree(tmp_path: Path, kind: str) -> None:
    config = DataConfig(kind=kind, path=str(tmp_path))
    with pytest.raises(LayoutError, match=r"path must hold\n  path/(.|\n)*found in .*: nothing"):
        open_dataset(config, 2, 16)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(LayoutError, match=r"notes\.txt; below it 1 \.txt"):
        open_dataset(config, 2, 16)
    with pytest.raises(LayoutError, match="which is no folder"):
        open_dataset(DataConfig(kind=kind, path=str(tmp_path / "notes.txt")), 2, 16)


def test_videos_beside_class_folders_are_refused(tmp_path: Path) -> None:
    layout("videos", tmp_path)
    encode(tmp_path / "top.mp4", moving(3))
    with pytest.raises(LayoutError, match="videos or class folders, not both"):
        open_dataset(DataConfig(kind="videos", path=str(tmp_path)), 2, 16)


def test_index_file_spares_the_scan_and_notices_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout("ffs", tmp_path / "set")
    config = DataConfig(kind="ffs", path=str(tmp_path / "set"), index=str(tmp_path / "index.json"), interval=1)
    first = open_dataset(config, 4, 16)
    from latte_fast.data import sources

    scanned = []
    original = sources.video.scan
    monkeypatch.setattr(sources.video, "scan", lambda path: scanned.append(path.name) or original(path))
    assert same(open_dataset(config, 4, 16)[1, 2], first[1, 2]) and not scanned
    changed = encode(tmp_path / "set" / "train" / "videos" / "id1.mp4", moving(7, 32, 32))
    assert len(open_dataset(config, 7, 16)) == 3 and scanned == [changed.name]
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index must be a file that this option made"):
        open_dataset(config, 4, 16)
    with pytest.raises(ValueError, match="index must be a file in an existing folder"):
        open_dataset(DataConfig(kind="ffs", path=config.path, index=str(tmp_path / "no" / "i")), 4, 16)


def test_shapes_written_are_the_videos_kind(tmp_path: Path) -> None:
    shapes.write_shapes(tmp_path, 1, 6, 16)
    data = open_dataset(DataConfig(kind="videos", path=str(tmp_path), interval=1), 6, 16)
    assert data.classes == sorted(shapes.CLASSES)
    clip = shapes.clip(shapes.CLASSES.index("circle left"), 0, 6, 16)
    assert (data[data.classes.index("circle left")]["video"] - normalise(clip)).abs().mean() < 0.1


@pytest.mark.parametrize(("frames", "size", "images"), [(0, 16, 0), (2, 0, 0), (2, 16, -1)])
def test_open_dataset_bad_numbers(frames: int, size: int, images: int) -> None:
    with pytest.raises(ValueError, match=r"open_dataset: .* must be at least"):
        open_dataset(DataConfig(), frames, size, images)
