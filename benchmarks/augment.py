"""Times random crops and flips: `python -m benchmarks.augment [SIZE]`.

Compares `data/pipeline.py`, rows first and then columns, with `dynamic_slice` under `vmap`,
alone and inside `lax.scan` as in training.
"""

import sys
import time

import jax
import jax.numpy as jnp

from experiments.data.pipeline import crop_and_flip

PADDING = 4
STEPS = 20


def by_slices(images: jax.Array, key: jax.Array) -> jax.Array:
    key_offset, key_flip = jax.random.split(key)
    starts = jax.random.randint(key_offset, (len(images), 2), 0, 2 * PADDING + 1)
    pad = (PADDING, PADDING)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))

    def crop(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

    crops = jax.vmap(crop)(padded, starts)
    flip = jax.random.bernoulli(key_flip, shape=(len(images), 1, 1, 1))
    return jnp.where(flip, crops[:, :, ::-1], crops)


def by_rows_and_columns(images: jax.Array, key: jax.Array) -> jax.Array:
    return crop_and_flip(images, key, images.shape[1:3], PADDING, True)


def milliseconds(run, *arguments) -> float:
    jax.block_until_ready(run(*arguments))  # compile
    times = []
    for _ in range(10):
        started = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main(size: int = 32) -> None:
    images = jax.random.randint(jax.random.key(0), (128, size, size, 3), 0, 256).astype(jnp.uint8)
    keys = jax.random.split(jax.random.key(1), STEPS)
    print(f"128 images of {size}x{size}x3 on {jax.default_backend()}, ms per batch")
    for method in (by_slices, by_rows_and_columns):

        def scan(images, keys, method=method):
            def step(total, key):  # a matrix product, so that all of the images are really made
                values = method(images, key).astype(jnp.float32).reshape(len(images), -1)
                return total + values @ values.T, None

            return jax.lax.scan(step, jnp.zeros((len(images), len(images))), keys)

        alone = milliseconds(jax.jit(method), images, keys[0])
        scanned = milliseconds(jax.jit(scan), images, keys)
        print(f"{method.__name__:>20}: {alone:6.2f} alone, {scanned / STEPS:6.2f} in scan")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
