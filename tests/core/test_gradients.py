"""Every shipped model with its objective: gradients against finite differences in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core.config import build
from experiments.core.experiment import Experiment
from support import composed

# small enough for a fraction of a second each; smooth, since differences mean nothing at a kink
AUTOENCODER = ["model.hidden=[5]", "model.latents=3", "model.activation=tanh"]
CONVOLUTION = ["model.channels=[2,3]", "model.latents=3", "model.activation=tanh"]
GAN = ["model.hidden=[5,4]", "model.latents=3", "model.activation=tanh"]
RECURRENT = ["model.hidden=3", "init=normal_1.0"]
SMOOTH = ["model.discriminator_activation=tanh"]
CASES = {
    "autoencoder": ["model=autoencoder", *AUTOENCODER],
    "cross entropy": ["model=autoencoder", "loss=binary_cross_entropy", *AUTOENCODER],
    "tied": ["model=stacked_autoencoder", "model.tied=true", *AUTOENCODER],
    "layer by layer": ["model=stacked_autoencoder", "objective.epochs_a_layer=1", *AUTOENCODER],
    "denoising": ["model=denoising_autoencoder", "model.latents=3", "model.code_activation=tanh"],
    "sparse": ["model=sparse_autoencoder", "model.latents=3"],
    "contractive": ["model=autoencoder", "objective.contraction=0.1", *AUTOENCODER],
    "convolutional": ["model=conv_autoencoder", *CONVOLUTION],
    "bernoulli": ["model=vae", *AUTOENCODER],
    "gaussian": ["model=vae", "model.likelihood=gaussian", *AUTOENCODER],
    "logistic": ["model=vae", "model.likelihood=logistic", *AUTOENCODER],
    "conditional": ["model=conv_vae", "model.conditional=true", *CONVOLUTION],
    **{
        f"gan {loss}": ["model=gan", f"loss={loss}", *GAN, *SMOOTH]
        for loss in ("minimax", "non_saturating", "least_squares", "wasserstein_gp")
    },
    "classification": ["model=gru", *RECURRENT],
    "regression": ["model=lstm", "data=adding", "data.length=4", *RECURRENT],
    "labelling": ["model=peephole_lstm", "data=copy", "data.length=1", "data.delay=1", *RECURRENT],
    "encoder-decoder": [
        *("model=encoder_decoder", "data=copy", "data.length=2", "data.target=answer", *RECURRENT)
    ],
    "vector to sequence": [
        *("model=vector_to_sequence", "data=sine", "data.given=parameters"),
        *("data.target=sequence", "data.horizon=3", *RECURRENT),
    ],
    "dcgan": ["model=dcgan", "model.discriminator_norm=batch", *CONVOLUTION, *SMOOTH],
}


def experiment(*overrides):
    config = composed(*overrides)
    data = build(config["data"])
    spec = data.spec
    if "image" in spec.stored:
        spec = dataclasses.replace(spec, input_shape=(4, 4, 1))
    return Experiment(config, spec, data.pipeline, steps_per_epoch=1, total_steps=10)


def images():
    image = jax.random.uniform(jax.random.key(1), (3, 4, 4, 1), jnp.float64, 0.05, 0.95)
    return {"image": image, "label": jnp.arange(3)}


def problems(core):
    seeds = {"seed": np.arange(3, dtype=np.uint32)}
    return core.pipeline(seeds, None, train=False)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case):
    core = experiment(*CASES[case])
    with jax.enable_x64(True):
        core.precision = jnp.dtype("float64")
        state = core.init({}, jax.random.key(0))
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), state.params)
        batch = images() if "image" in core.spec.stored else problems(core)
        objective = core.objective({})

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def losses(params):
            """The loss and every value of the objective, summed over the examples."""
            model = core.model({}, jax.nn.initializers.zeros)
            nnx.update(model, nnx.State(params))
            model.train()
            values, _ = objective(model, batch, nnx.Rngs(sample=2, dropout=3), 0.5)
            sums = {name: jnp.sum(value) for name, value in values.items()}
            return sums["loss"], sums

        # each part of an adversarial model descends on its own loss alone
        parts = [part for part in ("generator", "discriminator") if part in params]
        _, gradient = losses(params)
        for part in parts or [None]:
            chosen = params if part is None else {part: params[part]}
            wanted = gradient if part is None else {part: gradient[part]}
            direction = jax.tree.map(
                lambda a: np.random.default_rng(a.size).normal(size=a.shape), chosen
            )

            def along(h, chosen=chosen, direction=direction, part=part):
                moved = jax.tree.map(lambda a, d: a + h * d, chosen, direction)
                (_, values), _ = losses(params | moved)
                return values[f"{part}_loss" if part else "loss"]

            h = 1e-5
            difference = (along(h) - along(-h)) / (2 * h)
            products = jax.tree.map(lambda g, d: jnp.sum(g * d), wanted, direction)
            slope = sum(jax.tree.leaves(products))
            assert float(slope) == pytest.approx(float(difference), rel=1e-5, abs=1e-7)
