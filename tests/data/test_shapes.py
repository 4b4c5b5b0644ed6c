"""Moving shapes: what the class says is what is seen."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from latte_fast.data import DataConfig, GlobalSampler, open_dataset, shapes


def mass(video: torch.Tensor) -> torch.Tensor:
    """How far each pixel is from the ground colour, (F, H, W)."""
    ground = torch.stack([video[:, :, 0, 0], video[:, :, -1, -1], video[:, :, 0, -1]]).float().median(0).values
    return (video.float() - ground[:, :, None, None]).abs().sum(1)


@pytest.mark.parametrize("label", range(len(shapes.CLASSES)), ids=shapes.CLASSES)
@pytest.mark.parametrize("size", [32, 57])
def test_clip_moves_as_its_class_says_and_stays_inside(label: int, size: int) -> None:
    for seed in range(5):
        weight = mass(shapes.clip(label, seed, 9, size))
        grid = torch.arange(size) + 0.5
        x = (weight.sum(1) * grid).sum(1) / weight.sum((1, 2))
        y = (weight.sum(2) * grid).sum(1) / weight.sum((1, 2))
        dx, dy = shapes.DIRECTIONS[shapes.CLASSES[label].split()[1]]
        assert 0.33 * size < ((x[-1] - x[0]) * dx + (y[-1] - y[0]) * dy) < 0.47 * size
        assert abs((x[-1] - x[0]) * dy) + abs((y[-1] - y[0]) * dx) < 0.5
        steps = (x[1:] - x[:-1]) * dx + (y[1:] - y[:-1]) * dy
        assert steps.min() > 0
        assert weight[:, [0, -1]].max() < 0.4 * weight.max() and weight[:, :, [0, -1]].max() < 0.4 * weight.max()


def test_shapes_differ_in_how_they_fill_their_box() -> None:
    fills = {}
    for label, name in enumerate(shapes.CLASSES):
        inside = mass(shapes.clip(label, 0, 1, 128))[0] > 40
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        fills[name.split()[0]] = float(inside.sum() / (rows * columns))
    assert fills["triangle"] < 0.6 < 0.74 < fills["circle"] < 0.82 < 0.95 < fills["square"]


def test_edges_are_antialiased() -> None:
    values = shapes.clip(0, 0, 1, 64)[0].flatten(1).unique(dim=1).shape[1]
    assert values > 20


def test_dataset_is_a_function_of_seed_epoch_and_index() -> None:
    config = DataConfig(clips=24, seed=4)
    a, b = open_dataset(config, 5, 16, images=2), open_dataset(config, 5, 16, images=2)
    assert len(a) == 24 and a.classes == list(shapes.CLASSES)
    item = a[1, 7]
    assert item["video"].shape == (7, 3, 16, 16) and item["video"].dtype == torch.float32
    assert item["video"].min() >= -1 and item["video"].max() <= 1
    assert item["label"] == 7 and item["label"].dtype == torch.int64 and item["image_labels"].shape == (2,)
    assert torch.equal(item["video"], b[1, 7]["video"]) and torch.equal(a[7]["video"], a[0, 7]["video"])
    assert not torch.equal(item["video"], a[0, 7]["video"])
    with pytest.raises(IndexError):
        a[0, 24]


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_gives_the_same_batches_with_any_workers(workers: int) -> None:
    data = open_dataset(DataConfig(clips=13), 3, 16)

    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        loader = DataLoader(data, batch_size=4, sampler=GlobalSampler(len(data), 4, 0, start=8), num_workers=workers)
        return list(islice(loader, 4))

    for got, wanted in zip(batches(workers), batches(0), strict=True):
        assert torch.equal(got["video"], wanted["video"]) and torch.equal(got["label"], wanted["label"])


def test_write_shapes_writes_a_folder_a_class(tmp_path: Path) -> None:
    shapes.write_shapes(tmp_path / "a", 1, 3, 16)
    shapes.write_shapes(tmp_path / "b", 1, 3, 16)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.mp4"))
    assert [f.parent.name for f in files] == sorted(shapes.CLASSES)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "films"}, "kind must be one of videos, ffs"),
        ({"flip": True}, "flip must be False for shapes"),
        ({"path": "films"}, "path must be empty for kind shapes, which has no files, got films"),
        ({"image_path": "x"}, "image_path must be empty for kind shapes"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"kind": "ffs"}, "path must be the folder of the ffs set"),
        ({"kind": "ffs", "path": "x", "image_list": "y"}, "image_path"),
    ],
)
def test_bad_config(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


@pytest.mark.parametrize("label", [0, 5, 10], ids=lambda i: shapes.CLASSES[i])
def test_an_endless_film_goes_on_and_around(label: int) -> None:
    """Its frames are those of a longer one, its shape is always whole, and moves at one speed in its direction."""
    film = shapes.clip(label, 3, 40, 24, endless=True)
    assert torch.equal(film[:4], shapes.clip(label, 3, 4, 24, endless=True))
    ground = film.float().flatten(2).median(2).values  # most of a frame
    weight = (film.float() - ground[:, :, None, None]).abs().sum(1)
    area = weight.sum((1, 2))
    assert area.max() < 1.1 * area.min()
    dx, dy = shapes.DIRECTIONS[shapes.CLASSES[label].split()[1]]
    angle = torch.arange(24) * (2 * torch.pi / 24)
    line = weight.sum(1) if dx else weight.sum(2)
    turned = torch.atan2((line * angle.sin()).sum(1), (line * angle.cos()).sum(1))
    steps = (turned[1:] - turned[:-1]) * (dx or dy) / (2 * torch.pi) % 1
    assert steps.min() > 0.08 and steps.max() < 0.16
    item = open_dataset(DataConfig(clips=24, endless=True), 4, 24)[0, label]
    assert item["video"].shape == (4, 3, 24, 24)
    with pytest.raises(ValueError, match="endless must be False for kind videos"):
        DataConfig(kind="videos", path="films", endless=True)


def covered(film: torch.Tensor) -> torch.Tensor:
    """Returns the share of each pixel (F, H, W) that the shape covers."""
    away = (film.float() - film.float().flatten(2).median(2).values[:, :, None, None]).abs().sum(1)
    return away / away.amax()


def test_shapes_of_some_colours() -> None:
    """All hues occur, on one background, and the shapes are where they are in any colour."""
    films = [shapes.clip(i % 4, i, 4, 24, True, 3) for i in range(24)]
    tints = {tuple(film.flatten(2).amax((0, 2)).tolist()) for film in films}
    assert tints == {(255, 26, 26), (26, 255, 26), (26, 26, 255)}
    assert {tuple(film.flatten(2).amin((0, 2)).tolist()) for film in films} == {(26, 26, 26)}
    for i in range(4):
        plain = shapes.clip(i, i, 4, 24, endless=True)
        # both ends of a ratio are off by up to a step of 1/255 in three channels; a shape is 204 steps from its ground
        torch.testing.assert_close(covered(films[i]), covered(plain), rtol=0, atol=6 / 204)
    clips = open_dataset(DataConfig(clips=24, colours=3), 4, 24, images=2)
    for i in range(3):
        pixels = (clips[0, i]["video"] + 1) * 127.5  # (4 + 2, 3, 24, 24)
        torch.testing.assert_close(pixels.amin((2, 3)), torch.full((6, 3), 26.0))
    with pytest.raises(ValueError, match="colours must be at least 0"):
        DataConfig(colours=-1)
    with pytest.raises(ValueError, match="colours must be 0 for kind videos"):
        DataConfig(kind="videos", path="films", colours=3)
