"""Numbers of each layer during training: they show what the norm of the whole gradient hides."""

import functools

import jax
import numpy as np
import pytest

from experiments.core.config import build
from experiments.core.diagnostics.layers import diagnose
from experiments.core.experiment import Experiment
from experiments.core.params import norm
from experiments.core.transfer import named
from experiments.training.loop import fit
from experiments.training.setup import Setups
from support import TINY, composed, lines_of, trial_of

DEEP = ["model=mlp", "model.hidden=[32,32,32,32]"]
KEY = jax.random.key(0)


def network(*overrides):
    config = composed(*overrides)
    data = build(config["data"])
    core = Experiment(config, data.spec, data.pipeline, steps_per_epoch=20, total_steps=20)
    batch = data.load().train.take(np.arange(64)).arrays
    return core, core.init({}, KEY), batch


def numbers(core, state, batch):
    scalars, histograms = jax.jit(lambda s: diagnose(core, s, batch, {}, KEY))(state)
    return {name.removeprefix("diagnostics/"): float(v) for name, v in scalars.items()}, histograms


def test_norms_of_layers_tell_a_dead_network_from_a_healthy_one_and_the_global_norm_does_not():
    core, state, batch = network(*DEEP, "model.activation=sigmoid", "init=normal_0.01")
    _, metrics = core.step(state, batch, {}, KEY)
    dead, dead_whole = numbers(core, state, batch)[0], float(metrics["grad_norm"])
    core, state, batch = network(*DEEP, "optim.learning_rate=0.01")
    for _ in range(60):
        state, metrics = core.step(state, batch, {}, KEY)
    healthy, healthy_whole = numbers(core, state, batch)[0], float(metrics["grad_norm"])
    assert dead_whole > 2 * healthy_whole  # as if it were the dead one that learns
    assert dead["hidden.0/grad_norm"] < 1e-6 * dead_whole
    assert healthy["hidden.0/grad_norm"] > 0.1 * healthy_whole
    # of the dead one the last layer alone gets a gradient, of the healthy one all get alike
    assert dead["output/grad_norm"] == pytest.approx(dead_whole, rel=1e-3)
    assert healthy["output/grad_norm"] < 5 * healthy["hidden.0/grad_norm"]


def test_the_numbers_are_those_of_the_next_step():
    core, state, batch = network("model=mlp", "model.hidden=[8,6]", "optim=momentum")
    bias = np.zeros(8, np.float32)
    bias[:2] = -1e3  # two of eight rectifiers are never above 0
    state.params["hidden"][0]["bias"] = bias
    found, histograms = numbers(core, state, batch)
    assert found["hidden.0/dead_units"] == 2 / 8
    assert found["output/dead_units"] == 0
    after, metrics = core.step(state, batch, {}, KEY)
    change = jax.tree.map(lambda a, b: a - b, after.params, state.params)
    layer = {name: leaf for name, leaf in named(change).items() if name.startswith("hidden.1.")}
    assert found["hidden.1/update_norm"] == pytest.approx(float(norm(layer)), rel=1e-4)
    every = [value for name, value in found.items() if name.endswith("grad_norm")]
    assert np.linalg.norm(every) == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
    images = core.prepare(batch, {}, KEY, train=True)["image"].reshape(64, -1)
    outputs = images @ state.params["hidden"][0]["kernel"] + bias
    assert found["hidden.0/output_std"] == pytest.approx(float(outputs.std()), rel=1e-4)
    counts, edges = histograms["diagnostics/hidden.0/outputs"]
    wanted, _ = np.histogram(np.asarray(outputs, np.float32), edges)
    assert np.abs(counts - wanted).sum() <= 4  # of values at an edge
    assert counts.sum() == 64 * 8


@pytest.mark.parametrize(
    "model",
    [
        ["model=lstm", "data=digits_rows", "model.hidden=8"],
        ["model=gan", "model.hidden=[5,4]", "model.latents=3"],
        ["model=encoder_decoder", "data=copy", "data.length=2", "data.target=answer"],
        ["model=resnet110", "data=cifar10"],
        pytest.param(["model=densenet40_12", "data=cifar10"], marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_model_has_numbers_of_its_layers(model):
    config = composed(*model)
    data = build(config["data"])
    core = Experiment(config, data.spec, data.pipeline, steps_per_epoch=1, total_steps=1)
    batch = {
        name: jax.ShapeDtypeStruct((4, *shape), dtype)
        for name, (shape, dtype) in data.spec.stored.items()
    }
    state = core.abstract_state({})
    scalars, _ = jax.eval_shape(functools.partial(diagnose, core), state, batch, {}, KEY)
    layers = {name.rpartition(".")[0] for name in named(state.params)}
    assert {f"diagnostics/{layer}/grad_norm" for layer in layers} <= scalars.keys()
    assert any(name.endswith("/output_std") for name in scalars)


@pytest.mark.slow
def test_trials_side_by_side_have_the_numbers_that_each_has_alone(tmp_path):
    options = [*TINY, "trainer.diagnostics=true", "optim.learning_rate=0.01"]
    setups = Setups()

    def trained(name, *configs):
        trials = [
            trial_of(config, tmp_path / name / str(i), setups=setups)
            for i, config in enumerate(configs)
        ]
        fit(trials, tmp_path / name / "together", test=False)
        return [lines_of(trial.directory) for trial in trials]

    def of_layers(lines):
        return [line for line in lines if any("/grad_norm" in name for name in line)]

    one, other = composed(*options), composed(*options, "optim.learning_rate=0.1", "seed=1")
    (alone,), (beside, _) = trained("alone", one), trained("both", one, other)
    assert [line["step"] for line in of_layers(alone)] == [0, 6]  # not after epochs of two steps
    for a, b in zip(of_layers(alone), of_layers(beside), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-2, atol=1e-5)
    (every,) = trained("every", composed(*options, "trainer.diagnostics_every=1"))
    assert [line["step"] for line in of_layers(every)] == [0, 2, 4, 6]
    # and they change nothing about the training
    (without,) = trained("without", composed(*TINY, "optim.learning_rate=0.01"))
    assert without == [line for line in alone if line not in of_layers(alone)]
