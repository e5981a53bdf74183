"""Convolutions and poolings of this project beside XLA's own, forward and backward.

    JAX_PLATFORMS=cpu python benchmarks/convolution.py [--inside] [NAME ...]

Each line is a layer: milliseconds of value and gradients, the best of several runs, XLA's and ours.
By default each step is its own dispatch; `--inside` runs the steps in one `fori_loop` of dynamic
length, as the training loop does. XLA's CPU convolution is far slower there: on two busy cores
vgg16-2 took 80 ms outside and 5.3 s inside.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from jax import lax

from experiments.ops.convolution import conv
from experiments.ops.pooling import max_pool

CONVOLUTIONS = {  # x, kernel, stride, padding
    "lenet5-1": ((128, 28, 28, 1), (5, 5, 1, 6), 1, "SAME"),
    "lenet5-2": ((128, 14, 14, 6), (5, 5, 6, 16), 1, "VALID"),
    "vgg16-1": ((32, 32, 32, 3), (3, 3, 3, 64), 1, "SAME"),
    "vgg16-2": ((32, 32, 32, 64), (3, 3, 64, 64), 1, "SAME"),
    "vgg16-4": ((32, 16, 16, 128), (3, 3, 128, 128), 1, "SAME"),
    "vgg16-6": ((32, 8, 8, 256), (3, 3, 256, 256), 1, "SAME"),
    "vgg16-9": ((32, 4, 4, 512), (3, 3, 512, 512), 1, "SAME"),
    "vgg16-11": ((32, 2, 2, 512), (3, 3, 512, 512), 1, "SAME"),
    "resnet20-16": ((64, 32, 32, 16), (3, 3, 16, 16), 1, "SAME"),
    "resnet20-32": ((64, 16, 16, 32), (3, 3, 32, 32), 1, "SAME"),
    "resnet20-64": ((64, 8, 8, 64), (3, 3, 64, 64), 1, "SAME"),
    "resnet20-down": ((64, 32, 32, 16), (3, 3, 16, 32), 2, "SAME"),
    "1x1": ((64, 16, 16, 64), (1, 1, 64, 128), 1, "SAME"),
}
POOLS = {"max-2x2": (32, 32, 32, 64)}


def xla_conv(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def xla_max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def milliseconds(f, arguments, inside: bool, runs: int = 5) -> float:
    """Best time of one step: `f`, and the gradient of its squared sum for all arguments."""

    def step(arguments):
        y, vjp = jax.vjp(f, *arguments)
        return tuple(a - 1e-6 * g for a, g in zip(arguments, vjp(y), strict=True))

    if inside:
        loop = jax.jit(lambda n, a: lax.fori_loop(0, n, lambda _, a: step(a), a))
    else:
        loop = jax.jit(lambda n, a: step(a))
    jax.block_until_ready(loop(1, arguments))
    steps, times = 5 if inside else 1, []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(loop(steps, arguments))
        times.append((time.perf_counter() - start) / steps * 1e3)
        if sum(times) * steps > 5e3:
            break
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="layers to time; all by default")
    parser.add_argument("--inside", action="store_true", help="time the steps inside a fori_loop")
    options = parser.parse_args()
    key = jax.random.key(0)
    print(f"{'layer':14} {'XLA ms':>9} {'ours ms':>9} {'ratio':>6}")
    for name in options.names or [*CONVOLUTIONS, *POOLS]:
        if name in CONVOLUTIONS:
            x, kernel, strides, padding = CONVOLUTIONS[name]
            scale = (kernel[0] * kernel[1] * kernel[2]) ** -0.5
            arguments = (jax.random.normal(key, x), scale * jax.random.normal(key, kernel))
            pair = [
                lambda x, k, f=f, s=strides, p=padding: f(x, k, strides=s, padding=p)
                for f in (xla_conv, conv)
            ]
        else:
            arguments = (jax.random.normal(key, POOLS[name]),)
            pair = [xla_max_pool, lambda x: max_pool(x, 2)]
        xla, ours = (milliseconds(f, arguments, options.inside) for f in pair)
        print(f"{name:14} {xla:9.2f} {ours:9.2f} {xla / ours:6.1f}", flush=True)


if __name__ == "__main__":
    main()
