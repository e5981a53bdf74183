"""Pictures a second that a stream decodes, by the number of its workers.

    python -m benchmarks.decoding SLICES [--quick]

Prints JSON: `seconds` of an image by workers, one value for each slice of time, and the `cores`,
the `picture` and its `picture_bytes`. The pictures are JPEG photographs of no thing, of the size in
pixels and about the size in bytes that those of ImageNet have on average; they are laid out as
TFDS does and streamed as `data=imagenet2012` is: random crops of 224 x 224, mirrored. The files are
in memory, as the system keeps them there.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data.reading.prepared import FORMAT, Prepared, locate
from experiments.data.reading.stream import open_split
from experiments.machine import cores

WIDTH, HEIGHT = 500, 375
GRAIN = 8.0  # standard deviation, which decides how many bytes a picture takes
PICTURES, QUICK_PICTURES = 512, 8
BATCH, QUICK_BATCH = 32, 2
SECONDS, QUICK_SECONDS = 3.0, 0.1  # of a slice
WARM_UP = 6  # batches of each worker that are read before the clock starts: more than it holds
SIDE = 224
NAME = "photographs"


class Photographs(tfds.core.GeneratorBasedBuilder):
    """So many pictures of blurred noise with some grain."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME

    def __init__(self, count: int, **options):
        self._count = count
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(HEIGHT, WIDTH, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator:
        random = np.random.default_rng(0)
        for index in range(self._count):
            yield index, {"image": io.BytesIO(photograph(random)), "label": index % 2}


def photograph(random: np.random.Generator) -> bytes:
    """A picture as JPEG, of about 110 kB."""
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    grain = random.normal(0, GRAIN, (HEIGHT, WIDTH, 1)).astype(np.float32)
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


def prepare(folder: str, count: int) -> Prepared:
    """Write so many pictures into a folder."""
    tfds.disable_progress_bar()
    builder = Photographs(count, data_dir=folder, file_format=FORMAT)
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=settings)
    return locate(NAME, None, folder)


def seconds_an_image(
    prepared: Prepared, workers: int, slices: int, batch: int, seconds: float
) -> list[float]:
    """Seconds an image in each of several slices of time; a slice is whole rounds of all workers.

    The batches are left lying: nothing but the stream is at work.
    """
    stream = open_split(prepared, "train", image_size=SIDE, whole=False, workers=workers)
    batches = stream.iterate(batch, 0, True)
    for _ in range(WARM_UP * workers):
        next(batches)
    found = []
    for _ in range(slices):
        start, images = time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < seconds:
            for _ in range(workers):
                images += len(next(batches)["label"])
        found.append(taken / images)
    batches.close()
    return found


def main() -> None:
    slices, quick = int(sys.argv[1]), "--quick" in sys.argv
    counts = [1]
    while not quick and counts[-1] * 2 <= cores():
        counts.append(counts[-1] * 2)
    batch, seconds = (QUICK_BATCH, QUICK_SECONDS) if quick else (BATCH, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(folder, QUICK_PICTURES if quick else PICTURES)
        size = sum(path.stat().st_size for path in prepared.shards("train"))
        taken = {n: seconds_an_image(prepared, n, slices, batch, seconds) for n in counts}
    facts = {
        "cores": cores(),
        "picture": f"JPEG of {WIDTH} x {HEIGHT}",
        "picture_bytes": round(size / prepared.num_examples("train")),
    }
    print(json.dumps({"seconds": taken, **facts}))


if __name__ == "__main__":
    main()
