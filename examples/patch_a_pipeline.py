"""Makes a diffusers LattePipeline fast in place: same object, same weights, same numbers.

python examples/patch_a_pipeline.py Latte-1 --prompt "a dog on a beach" --out dog.mp4
"""

import argparse

import torch
from diffusers import LattePipeline

import latte_fast
from latte_fast.media.write import write_mp4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="local folder of a LattePipeline")
    parser.add_argument("--prompt", default="a dog on a beach")
    parser.add_argument("--out", default="film.mp4", help="file to write")
    parser.add_argument("--steps", type=int, default=50, help="number of sampling steps")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    given = parser.parse_args()

    gpu = torch.cuda.is_available()
    pipe = LattePipeline.from_pretrained(given.folder, torch_dtype=torch.bfloat16 if gpu else torch.float32)
    pipe.to("cuda" if gpu else "cpu")

    print(latte_fast.patch(pipe))  # what was swapped, and what was not and why
    film = pipe(
        given.prompt,
        num_inference_steps=given.steps,
        video_length=pipe.transformer.config.video_length,
        height=given.size,
        width=given.size,
        clean_caption=False,
        output_type="pt",
    ).frames[0]
    pixels = (film.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu()  # (F, H, W, 3)
    write_mp4(given.out, pixels)
    print(f"{given.out}: {len(pixels)} frames")

    latte_fast.unpatch(pipe)  # diffusers' own classes again


if __name__ == "__main__":
    main()
