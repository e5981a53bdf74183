"""Residual networks (He et al. 2016) and the plain networks that they were compared with."""

import functools
from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import (
    SAVED,
    BatchNorm,
    Conv,
    Dense,
    Init,
    drawn,
    is_small,
)
from experiments.ops.pooling import global_avg_pool, max_pool
from experiments.ops.remat import as_block, is_recomputing
from experiments.types import PositiveInt

Shortcut = Literal["projection", "identity", "none"]
EXPANSION = {"basic": 1, "bottleneck": 4}
MANY = 6  # blocks of a stage; where there are more, all but the first run as one loop

# The loop of `Repeated` copies what it saves for the backward pass. That pays for outputs of
# convolutions and statistics; what lies between them is sooner computed again than copied.
ONLY_SAVED = jax.checkpoint_policies.save_only_these_names(SAVED)


class Block(nnx.Module):
    """relu(F(x) + x), where F is two 3x3 convolutions or, as a bottleneck, 1x1, 3x3 and 1x1.

    [batch, H, W, channels] to [batch, H / stride, W / stride, features · expansion]. Where that
    is another shape the shortcut is a 1x1 convolution (`projection`, option B of section 4.1) or
    drops pixels and adds channels of zeros (`identity`, option A). With `pre_activation`
    normalisation and rectifier come before each convolution and none after the sum: F(x) + x
    (He et al. 2016b, arXiv:1603.05027). The stride is that of the first 3x3 convolution, or with
    `stride_on="1x1"` of the first 1x1 of a bottleneck.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        *,
        kind: Literal["basic", "bottleneck"],
        stride: int,
        shortcut: Shortcut,
        zero_gamma: bool,
        pre_activation: bool,
        stride_on: Literal["1x1", "3x3"] = "3x3",
        **init: Unpack[Init],
    ):
        conv = functools.partial(Conv, use_bias=False, **init)
        out = features * EXPANSION[kind]
        kernels, strides = ([3, 3], [stride, 1])
        sizes = [channels, features, out]
        if kind == "bottleneck":
            kernels = [1, 3, 1]
            strides = [stride, 1, 1] if stride_on == "1x1" else [1, stride, 1]
            sizes = [channels, features, features, out]
        self.convs = nnx.List(
            conv(n_in, n_out, (k, k), strides=s, padding=k // 2)
            for n_in, n_out, k, s in zip(sizes, sizes[1:], kernels, strides, strict=False)
        )
        self.norms = nnx.List(map(BatchNorm, sizes[:-1] if pre_activation else sizes[1:]))
        if zero_gamma:
            self.norms[-1].scale = nnx.Param(np.zeros(out, np.float32))
        project = shortcut == "projection" and (stride > 1 or channels != out)
        self.projection = (
            conv(channels, out, (1, 1), strides=stride, padding=0) if project else None
        )
        self.projection_norm = BatchNorm(out) if project and not pre_activation else None
        self.shortcut, self.stride, self.widening = shortcut, stride, out - channels
        self.pre_activation = pre_activation

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.pre_activation:
            y = jax.nn.relu(self.norms[0](x))
            skipped = self._skipped(x if self.projection is None else y)
            y = self.convs[0](y)
            for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
                y = conv(jax.nn.relu(norm(y)))
            return y + skipped
        y = x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            y = jax.nn.relu(norm(conv(y)))
        return jax.nn.relu(self.norms[-1](self.convs[-1](y)) + self._skipped(x))

    def _skipped(self, x: jax.Array) -> jax.Array | float:
        """Return the shortcut's output, which is added to F(x)."""
        if self.shortcut == "none":
            return 0.0
        if self.projection is not None:
            y = self.projection(x)
            return y if self.projection_norm is None else self.projection_norm(y)
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, [(0, 0)] * 3 + [(0, self.widening)])


class Repeated(nnx.Module):
    """`depth` blocks of one shape in a row, traced and compiled once.

    Each variable of `block` holds those of all blocks, [depth, ...], and the blocks run as one
    `lax.scan`: the program and the optimizer are as small as those of one block.

    Args:
      make: returns a new block; called with the `kernel_init` that draws its weights.
      depth: number of blocks.
      init: of one block.
    """

    inside = "block"  # the attribute with the variables of all blocks

    def __init__(self, make: Callable[..., nnx.Module], depth: int, **init: Unpack[Init]):
        def every(_key: jax.Array, shape: tuple[int, ...], _dtype: Any) -> jax.Array:
            return jnp.stack([drawn(shape, **init) for _ in range(depth)])

        self.depth = depth
        self.block = make(kernel_init=every)
        for _, variable in nnx.iter_graph(self.block):
            # NumPy arrays are constants, which all blocks start with
            if isinstance(variable, nnx.Variable) and isinstance(variable[...], np.ndarray):
                constant = variable[...]
                variable.set_value(np.broadcast_to(constant, (depth, *constant.shape)))

    def __call__(self, x: jax.Array) -> jax.Array:
        graph, variables = nnx.split(self.block)
        policy = None if is_recomputing() else ONLY_SAVED

        @functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)
        def body(x: jax.Array, variables: nnx.State) -> tuple[jax.Array, nnx.State]:
            block = nnx.merge(graph, variables)
            y = block(x)
            return y, nnx.state(block, nnx.BatchStat)

        x, statistics = jax.lax.scan(body, x, variables)
        nnx.update(self.block, statistics)
        return x

    def widths_of(self, part: str) -> None:
        """Return None: the blocks have the same channels; see `DenseBlock.widths_of`."""


class ResNet(nnx.Module):
    """Stages of residual blocks, each stage but the first at half the resolution.

    [batch, H, W, C] to logits [batch, num_classes]. The first layers are a 7x7 convolution at
    stride 2 and 3x3 max pooling (section 4.1); images below 96 pixels get a 3x3 convolution as in
    the networks for CIFAR-10 (section 4.2). A stage of more than six blocks is its first block and
    a `Repeated` of the others.
    """

    minimum_size = 32

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"],
        stages: list[PositiveInt],
        widths: list[PositiveInt],
        stem: Literal["imagenet", "cifar"] | None,
        shortcut: Shortcut,
        zero_gamma: bool,
        pre_activation: bool,
        stride_on: Literal["1x1", "3x3"] = "3x3",
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        small = is_small(input_shape) if stem is None else stem == "cifar"
        kernel, stride, padding = ((3, 3), 1, 1) if small else ((7, 7), 2, 3)
        channels, self.pool = widths[0], not small
        options: dict[str, Any] = {"strides": stride, "padding": padding, "use_bias": False}
        self.conv = Conv(input_shape[-1], channels, kernel, **options, **init)
        self.norm = None if pre_activation else BatchNorm(channels)
        options = {"kind": block, "shortcut": shortcut, "zero_gamma": zero_gamma}
        options |= {"pre_activation": pre_activation, "stride_on": stride_on, **init}
        self.stages: nnx.List = nnx.List()
        for index, (depth, features) in enumerate(zip(stages, widths, strict=True)):
            make = functools.partial(Block, channels, features, **options)
            stage: nnx.List = nnx.List([make(stride=2 if index else 1)])
            channels = features * EXPANSION[block]
            make = functools.partial(Block, channels, features, stride=1, **options)
            if depth > MANY:
                stage.append(Repeated(make, depth - 1, **init))
            else:
                stage.extend(make() for _ in range(depth - 1))
            self.stages.append(stage)
        self.last_norm = BatchNorm(channels) if pre_activation else None
        self.output = Dense(channels, num_classes, **init)

    @staticmethod
    def check_config(arguments: dict[str, Any], path: str) -> None:
        """Raise `UserError` for arguments that cannot learn or contradict each other."""
        if len(arguments["stages"]) != len(arguments["widths"]):
            raise UserError(f"{path}.stages and {path}.widths need as many numbers each")
        if arguments.get("stride_on") == "1x1" and arguments["block"] == "basic":
            raise UserError(f"{path}.stride_on=1x1 needs {path}.block=bottleneck, which has a 1x1")
        if not arguments["zero_gamma"]:
            return
        if arguments["shortcut"] == "none":
            raise UserError(f"{path}.zero_gamma=true needs shortcuts: without, all outputs are 0")
        if arguments["pre_activation"]:
            raise UserError(
                f"{path}.zero_gamma=true does not go with {path}.pre_activation=true: a block "
                f"has no normalisation after its last convolution"
            )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv(x)
        if self.norm is not None:
            x = jax.nn.relu(self.norm(x))
        if self.pool:
            x = max_pool(x, 3, strides=2, padding=1)
        for stage in self.stages:
            for part in stage:  # a loop looks by itself to what it saves
                x = part(x) if isinstance(part, Repeated) else as_block(part, x)
        if self.last_norm is not None:
            x = jax.nn.relu(self.last_norm(x))
        return self.output(global_avg_pool(x))
