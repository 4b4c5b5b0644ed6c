"""The configuration of the training data."""

from dataclasses import dataclass
from typing import Literal, get_args

from latte_fast.data.shapes import SHAPES

Kind = Literal["videos", "ffs", "sky", "ucf101", "taichi", "frames", "latents", "tokens", "sounds", "shapes"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class DataConfig:
    """A data set of clips; docs/data.md shows the folders of each kind.

    Args:
        kind: layout of the data: videos (subfolders are classes), ffs, sky, ucf101, taichi (upstream's folders), frames
            (a folder of images for each clip), latents (of `latte-fast encode`), tokens (of `latte-fast encode
            --tokens`), sounds (for the VQGAN of a condition), or shapes (drawn on the fly).
        path: folder of the data set; shapes has none.
        split: text file that lists the clips to take, one a line as a path below `path`, with or without suffix; words
            after it are ignored, so that UCF101's trainlist01.txt serves; empty to take all.
        text: folder of captions that `latte-fast encode-text` wrote, for text to video; empty for none.
        interval: distance between a clip's frames in its video.
        flip: whether to mirror half of the clips, each as a whole; not for shapes, where left and right are classes.
        seed: seed of clips' starts, flips, posterior noise and shapes.
        short: what to do about a video shorter than a clip: leave it out and count it (skip), or start it over (loop).
        on_error: what to do about a video that does not decode: report, count and replace it (skip), or stop (raise).
        index: file that keeps the videos' frame times, made on first use; empty to read them from the videos each time.
        image_path: folder of pictures for joint training; empty to take frames of the clips themselves.
        image_list: text file that lists pictures below image_path, one a line; empty to take all.
        fps: frames a second of the films that the sounds of kind sounds belong to.
        clips: number of clips in an epoch of shapes.
        outlines: shapes to draw, among circle, square and triangle.
        endless: whether shapes that leave the picture on one side come back on the other, so that films of any length
            show their class.
        colours: number of hues that shapes have, on one dark background; 0 lets shape and background have any colour.
    """

    kind: Kind = "shapes"
    path: str = ""
    split: str = ""
    text: str = ""
    interval: int = 3
    flip: bool = False
    seed: int = 0
    short: Literal["skip", "loop"] = "skip"
    on_error: Literal["skip", "raise"] = "skip"
    index: str = ""
    image_path: str = ""
    image_list: str = ""
    fps: float = 25.0
    clips: int = 1200
    outlines: tuple[str, ...] = SHAPES
    endless: bool = False
    colours: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("short", ("skip", "loop")), ("on_error", ("skip", "raise"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"data: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in (("interval", 1), ("seed", 0), ("clips", 1), ("colours", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data: {name} must be at least {least}, got {getattr(self, name)}")
        if not self.outlines or not set(self.outlines) <= set(SHAPES):
            raise ValueError(f"data: outlines must be among {', '.join(SHAPES)}, got {self.outlines}")
        if self.kind == "shapes" and self.flip:
            raise ValueError("data: flip must be False for shapes, whose classes are directions, got True")
        for name in ("path", "split", "image_path", "index"):
            if self.kind == "shapes" and getattr(self, name):
                raise ValueError(
                    f"data: {name} must be empty for kind shapes, which has no files, got {getattr(self, name)}"
                )
        for name, default in (("endless", False), ("colours", 0)):
            got = getattr(self, name)
            if self.kind != "shapes" and got != default:
                rule = f"{default} for kind {self.kind}, as it is that of shapes"
                raise ValueError(f"data: {name} must be {rule}, got {got}")
        if self.kind != "shapes" and not self.path:
            raise ValueError(f"data: path must be the folder of the {self.kind} set, got none")
        if self.split and self.kind in ("latents", "tokens"):
            rule = f"empty for {self.kind}, which are all of their folder"
            raise ValueError(f"data: split must be {rule}, got {self.split}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"data: fps must be in (0, 1000], got {self.fps}")
        if self.image_list and not self.image_path:
            raise ValueError(f"data: image_path must be the folder of the pictures in {self.image_list}, got none")
