"""Single pictures beside clips, for joint training: which, of what class, mirrored each by itself; their formats."""

from pathlib import Path

import numpy as np
import pytest

from latte_fast.data import DataConfig, open_dataset
from latte_fast.data.layouts import LayoutError
from latte_fast.media.picture import read_picture
from latte_fast.media.video import VideoError
from latte_fast.media.write import write_png
from tests.helpers.films import encode, layout, moving


def pictures(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        write_png(root / name, np.full((20, 24, 3), 10 * i, np.uint8))
    return root


def test_image_list_of_faces(tmp_path: Path) -> None:
    layout("ffs", tmp_path / "set")
    root = pictures(tmp_path / "pictures", ["v0/0.png", "v0/1.png", "v1/0.png"])
    (tmp_path / "list.txt").write_text("v0/1.png\nv1/0.png\n")
    config = DataConfig(kind="ffs", path=str(tmp_path / "set"), image_path=str(root),
                        image_list=str(tmp_path / "list.txt"))  # fmt: skip
    data = open_dataset(config, 2, 16, images=3)
    levels = {round(float(x.mean() + 1) * 127.5) for epoch in range(8) for x in data[epoch, 0]["video"][2:]}
    assert levels == {10, 20}


def test_pictures_are_mirrored_each_by_itself(tmp_path: Path) -> None:
    layout("ffs", tmp_path / "set")
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None], (16, 16, 3))
    write_png(tmp_path / "pictures" / "a.png", np.ascontiguousarray(ramp))
    path, image_path = str(tmp_path / "set"), str(tmp_path / "pictures")
    for flip in (True, False):
        data = open_dataset(DataConfig(kind="ffs", path=path, image_path=image_path, flip=flip), 2, 16, images=2)
        items = [data[epoch, 0]["video"][2:] for epoch in range(24)]
        left = {tuple(bool(x[0, 0, 0] < x[0, 0, -1]) for x in item) for item in items}
        assert len(left) == (4 if flip else 1)


def test_image_list_of_ucf101_takes_the_class_from_the_name(tmp_path: Path) -> None:
    layout("ucf101", tmp_path / "set")
    root = pictures(tmp_path / "pictures", ["v_Archery_g01_c01/1.png", "v_HandStandPushups_g02_c01/7.png"])
    (tmp_path / "list.txt").write_text("v_Archery_g01_c01/1\nv_HandStandPushups_g02_c01/7\n")
    config = DataConfig(kind="ucf101", path=str(tmp_path / "set"), image_path=str(root),
                        image_list=str(tmp_path / "list.txt"))  # fmt: skip
    data = open_dataset(config, 2, 16, images=4)
    for epoch in range(4):
        item = data[epoch, 0]
        seen = [round(float(x.mean() + 1) * 127.5) for x in item["video"][2:]]
        assert [{0: 1, 10: 2}[level] for level in seen] == item["image_labels"].tolist()
    (tmp_path / "list.txt").write_text("v_Archery_g01_c01/2\n")
    with pytest.raises(LayoutError, match=r"below image_path .* got .*/2 \(1 missing\)"):
        open_dataset(config, 2, 16, images=4)


def test_pictures_outside_the_classes(tmp_path: Path) -> None:
    layout("videos", tmp_path / "set")
    root = pictures(tmp_path / "pictures", ["c/1.png"])
    config = DataConfig(kind="videos", path=str(tmp_path / "set"), image_path=str(root))
    with pytest.raises(LayoutError, match=r"folders named after classes, got .*c/1\.png"):
        open_dataset(config, 2, 16, images=1)
    with pytest.raises(LayoutError, match="which is no folder"):
        open_dataset(DataConfig(kind="videos", path=config.path, image_path=str(tmp_path / "no")), 2, 16, images=1)


def test_read_picture_formats(tmp_path: Path) -> None:
    picture = moving(1, 32, 48)[0]
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture)
    encode(tmp_path / "b.avi", picture[None], "mjpeg", {"q:v": "1"}, pix_fmt="yuvj420p")
    data = (tmp_path / "b.avi").read_bytes()
    start = data.index(b"\xff\xd8\xff")
    # what a picture holds counts, not its name
    (tmp_path / "b.png").write_bytes(data[start : data.index(b"\xff\xd9", start) + 2])
    assert np.abs(read_picture(tmp_path / "b.png").astype(int) - picture).mean() < 12
    (tmp_path / "c.jpg").write_text("text")
    for name, message in (("c.jpg", "must be a jpeg, png"), ("d.jpg", "d.jpg: No such file")):
        with pytest.raises(VideoError, match=message):
            read_picture(tmp_path / name)


def test_pictures_need_images() -> None:
    with pytest.raises(ValueError, match=r"open_dataset: images must be at least 1 to take any of pictures, got 0"):
        open_dataset(DataConfig(kind="ffs", path="x", image_path="pictures"), 2, 16)
