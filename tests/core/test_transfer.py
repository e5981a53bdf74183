"""Transfer learning: found weights, frozen ones, and learning rates for parts of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.core.experiment import Experiment
from experiments.core.params import merged
from experiments.core.transfer import agreement, fitted, named, split
from experiments.data.dataset import Spec
from experiments.data.pipeline import Pipeline
from experiments.errors import UserError
from experiments.models.torchvision import read_published
from support import composed

KEY = jax.random.key(0)
NORMED = "[{conv:{features:4,kernel:3}},batch_norm,relu,flatten,{dense:6},{dense:classes}]"


def experiment(*overrides, classes=10):
    config = composed(*overrides)
    pipeline = Pipeline((0.5,), (0.5,), classes)
    return Experiment(config, Spec((8, 8, 1), classes), pipeline, 1, 1)


def batch(classes=10):
    image = jax.random.randint(KEY, (16, 8, 8, 1), 0, 256).astype(jnp.uint8)
    return {"image": image, "label": jnp.arange(16) % classes}


def stepped(core, steps=2):
    """(the state before, the state after, the last metrics)"""
    before = state = core.init({}, KEY)
    update = jax.jit(core.train_step)
    for _ in range(steps):
        state, metrics = update(state, batch(), {}, KEY)
    return before, state, metrics


def moved(before, after):
    """Names of the leaves that are not the same bit for bit."""
    after = named(after)
    return {n for n, a in named(before).items() if not np.array_equal(a, after[n])}


@pytest.mark.parametrize(
    "optim", ["optim=adamw", "optim=momentum,optim.l2=0.1", "optim=muon", "optim=lamb"]
)
def test_frozen_weights_and_statistics_never_move(optim):
    layers = f"model.layers={NORMED}"
    freeze = "freeze=[conv1,batch_norm1]"
    core = experiment("model=cnn", layers, freeze, *optim.split(","), "optim.ema_decay=0.9")
    before, after, _ = stepped(core)
    heads = {f"dense{i}.{leaf}" for i in (1, 2) for leaf in ("kernel", "bias")}
    assert moved(before.params, after.params) == heads
    assert moved(before.model_state, after.model_state) == set()
    # no moments are kept for what never moves
    assert not any("conv1" in name for name in named(after.opt_state))


def test_without_freeze_everything_moves():
    before, after, _ = stepped(experiment("model=cnn", f"model.layers={NORMED}", "optim=adamw"))
    assert moved(before.params, after.params) == set(named(before.params))
    assert moved(before.model_state, after.model_state) == set(named(before.model_state))


def test_a_frozen_batch_norm_uses_its_running_statistics():
    core = experiment("model=cnn", f"model.layers={NORMED}", "freeze=batch_norm1")
    state = core.init({}, KEY)
    statistics = {"batch_norm1": {"mean": 3 * jnp.ones(4), "var": 4 * jnp.ones(4)}}
    moved_on = state._replace(model_state=statistics)
    _, metrics = jax.jit(core.train_step)(moved_on, batch(), {}, KEY)
    examples = batch() | {"mask": jnp.ones(16)}
    evaluated, _ = jax.jit(core.eval_step)(state.params, statistics, examples, {})
    assert float(metrics["loss"]) == pytest.approx(float(evaluated["loss"]) / 16, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "overrides"),
    {
        "stages.0.1": ["model=resnet20", "model.stages=[3]", "model.widths=[4]"],
        "blocks.0": ["model=densenet40_12", "model.blocks=[2,1]", "model.growth_rate=2"],
    }.items(),
)
def test_one_of_several_blocks_can_be_frozen(part, overrides):
    core = experiment(*overrides, f"freeze={part}")
    before, after, _ = stepped(core, 1)
    for old, new in ((before.params, after.params), (before.model_state, after.model_state)):
        still = {name for name in named(old) if name.startswith(f"{part}.")}
        assert still
        assert moved(old, new) == set(named(old)) - still


def test_body_and_head_have_learning_rates_of_their_own():
    layers = ["model=cnn", f"model.layers={NORMED}", "optim=sgd", "optim.learning_rate=0.1"]
    rates = "optim.learning_rates={conv*:0.001,dense2:0.2}"
    one = stepped(experiment(*layers), 1)
    other = stepped(experiment(*layers, rates), 1)
    for name, factor in {"conv1": 0.01, "dense1": 1.0, "dense2": 2.0}.items():
        steps = [
            after.params[name]["kernel"] - before.params[name]["kernel"]
            for before, after, _ in (one, other)
        ]
        np.testing.assert_allclose(steps[1], factor * steps[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("freeze=convv1", "freeze: no weight is called convv1; did you mean 'conv1'"),
        ("freeze=xyz", "no weight is called xyz; the model has batch_norm1, conv1, dense1, dense2"),
        ("freeze='*'", "freeze=* leaves nothing to train"),
        ("optim.learning_rates={dens2:1}", "optim.learning_rates: no weight is called dens2; did"),
    ],
)
def test_patterns_of_nothing_end_in_a_plain_line(override, complaint):
    core = experiment("model=cnn", f"model.layers={NORMED}", override)
    with pytest.raises(UserError) as error:
        core.abstract_state({})
    assert complaint in str(error.value)


def test_split_and_merge_are_inverse():
    params = {"a": {0: {"kernel": 1.0}, 1: {"kernel": 2.0, "bias": 3.0}}, "b": {"bias": 4.0}}
    trained, frozen = split(params, ["a.1", "*.bias"])
    assert trained == {"a": {0: {"kernel": 1.0}}}
    assert frozen == {"a": {1: {"kernel": 2.0, "bias": 3.0}}, "b": {"bias": 4.0}}
    assert merged(trained, frozen) == params


def test_what_fits_by_name_and_shape_is_taken():
    wanted = {"body": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}, "head": jnp.zeros(5)}
    found = {"body.kernel": np.ones((3, 2)), "head": np.ones(7), "other": np.ones(1)}
    result = agreement(found, wanted)
    assert result.fitting == ["body.kernel"]
    assert result.of_other_shape == {"head": ((7,), (5,))}
    assert result.unwanted == ["other"]
    assert result.new == ["body.bias", "head"]
    taken = fitted(found, wanted)
    assert float(taken["body"]["kernel"].sum()) == 6
    assert taken["body"]["kernel"].dtype == jnp.float32
    assert float(taken["head"].sum()) == 0


def test_files_that_cannot_be_read_end_in_a_plain_line(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"fc.weight": np.zeros((2, 2), np.float32)}, file)
    with pytest.raises(UserError, match="names are known for VGG, AlexNet, "):
        read_published(file, composed("model=mlp")["model"])
    file.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        read_published(file, composed("model=vgg16")["model"])


@pytest.mark.slow
def test_a_run_starts_from_another_with_other_classes(run_cli, tmp_path):
    small = "model.layers=[{conv:{features:4,kernel:3}},batch_norm,flatten,{dense:CLASSES}]"
    options = ["model=cnn", "debug=fast", "trainer.checkpoints=true", "optim=sgd"]
    first, second = tmp_path / "first", tmp_path / "second"
    code, _ = run_cli(*options, small.replace("CLASSES", "classes"), folder=first)
    assert code == 0
    (step,) = (int(p.name) for p in (first / "checkpoints").iterdir() if p.name.isdigit())
    deeper = "[{conv:{features:4,kernel:3}},batch_norm,flatten,{dense:7},{dense:classes}]"
    for source in (first, first / "checkpoints" / str(step)):
        code, said = run_cli(
            *options,
            f"model.layers={deeper}",
            f"model.pretrained={source}",
            "freeze=[conv1,batch_norm1]",
            "overwrite=true",
            folder=second,
        )
        assert code == 0, said
        assert "loaded 6 of 10 arrays, 56 of 1,935 values" in said
        assert "dense1.kernel (256, 10) (here (256, 7))" in said
        assert "new: dense1.bias, dense1.kernel, dense2.bias, dense2.kernel" in said
    code, errors = run_cli(*options, "model.pretrained=/nowhere", folder=tmp_path / "third")
    assert code == 2
    assert "/nowhere does not exist" in errors
