"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998)."""

from typing import Any, Literal

import jax
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.layers import ACTIVATIONS, Conv, Dense, flatten
from experiments.ops.pooling import avg_pool, max_pool
from experiments.types import Activation


class LeNet5(nnx.Module):
    """C1 6@5x5, S2, C3 16@5x5, S4, C5 120@5x5, F6 84, output.

    [batch, H, W, C] to logits [batch, num_classes]. At 32x32 the maps are 28, 14, 10, 5 and 1
    pixels wide; 28x28 images are padded to 32x32 as in the paper. C3 sees all six maps of S2
    where the paper's table I connects 60 of the 96 pairs, and S2 and S4 are plain pooling without
    trainable coefficients: 61,706 parameters for one channel and ten classes.
    """

    minimum_size = 28

    def __init__(
        self,
        *,
        activation: Activation,
        pooling: Literal["average", "max"],
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        height, width, channels = input_shape
        arguments: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        pad = [(2, 2), (2, 2)] if min(height, width) < 32 else "VALID"
        self.conv1 = Conv(channels, 6, (5, 5), padding=pad, **arguments)
        self.conv2 = Conv(6, 16, (5, 5), padding="VALID", **arguments)
        border = 4 if pad != "VALID" else 0
        rows, columns = (((n + border - 4) // 2 - 4) // 2 for n in (height, width))
        # a convolution as large as its input is a dense layer
        self.conv3 = Dense(rows * columns * 16, 120, **arguments)
        self.dense = Dense(120, 84, **arguments)
        self.output = Dense(84, num_classes, **arguments)
        self.activation = activation
        self.pooling = pooling

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        pool = avg_pool if self.pooling == "average" else max_pool
        x = pool(activation(self.conv1(x)), 2)
        x = pool(activation(self.conv2(x)), 2)
        x = activation(self.conv3(flatten(x)))
        return self.output(activation(self.dense(x)))
