"""Write MNIST as this project reads it, for a peer: `python -m benchmarks.images_for_peer FILE`.

float32 NCHW, normalised, and int64 labels, as the arrays {train,val,test}_{x,y} of an .npz file.
Further arguments are overrides of the config.
"""

import sys

import numpy as np

from benchmarks.our_step import composed
from experiments.cli.main import command_line
from experiments.core.config import build


def main() -> None:
    data = build(composed("data=mnist", *sys.argv[2:])["data"])
    splits, arrays = data.load(), {}
    for short, split in (
        ("train", splits.train),
        ("val", splits.validation),
        ("test", splits.test),
    ):
        pixels = np.asarray(split.arrays["image"], np.float32) / 255
        pixels = (pixels - np.float32(data.mean)) / np.float32(data.std)
        arrays[f"{short}_x"] = pixels.transpose(0, 3, 1, 2)
        arrays[f"{short}_y"] = np.asarray(split.arrays["label"], np.int64)
    np.savez(sys.argv[1], **arrays)


if __name__ == "__main__":
    sys.exit(command_line(main))
