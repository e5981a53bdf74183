"""Autoencoders, variational inference and adversarial training against known properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core.config import build
from experiments.core.experiment import Experiment
from experiments.models.layers import Dense, Spectral
from experiments.objectives import adversarial, losses
from experiments.objectives.adversarial import energy_distance
from experiments.objectives.autoencoding import bernoulli_kl
from experiments.objectives.variational import logistic
from support import composed

KEY = jax.random.key(3)


def experiment(*overrides):
    config = composed(*overrides)
    data = build(config["data"])
    return Experiment(config, data.spec, data.pipeline, steps_per_epoch=2, total_steps=100)


def digits(count):
    from sklearn.datasets import load_digits

    images = load_digits().images[:count, ..., None] / 16
    return {
        "image": jnp.asarray(images * 255, jnp.uint8),
        "label": jnp.asarray(load_digits().target[:count], jnp.int32),
    }


def trained(core, batch, steps):
    state = core.init({}, KEY)

    @jax.jit
    def run(state):
        def body(state, _):
            return core.train_step(state, batch, {}, KEY)

        return jax.lax.scan(body, state, length=steps)

    return run(state)


@pytest.mark.slow
def test_a_linear_autoencoder_finds_the_subspace_of_pca():
    from sklearn.decomposition import PCA

    linear = ["model.hidden=[]", "model.latents=3", "model.activation=identity"]
    core = experiment("model=autoencoder", *linear, "optim.learning_rate=0.01")
    batch = digits(200)
    state, log = trained(core, batch, 5000)
    x = np.asarray(batch["image"], np.float64).reshape(200, -1) / 255
    pca = PCA(3).fit(x)
    decoder = np.asarray(state.params["decoder"][0]["kernel"])
    basis, _ = np.linalg.qr(decoder.T)
    cosines = np.linalg.svd(pca.components_ @ basis, compute_uv=False)
    assert cosines.min() > 0.999  # of the angles between the two subspaces
    best = 0.5 * np.sum((x - pca.inverse_transform(pca.transform(x))) ** 2, axis=1).mean()
    assert float(log["loss"][-1]) == pytest.approx(best, rel=1e-3)


def test_layer_by_layer_training_moves_one_layer_at_a_time():
    core = experiment(
        "model=stacked_autoencoder",
        "model.hidden=[8]",
        "model.latents=4",
        "objective.epochs_a_layer=1",
        "optim=sgd",
    )
    state = core.init({}, KEY)
    step = jax.jit(core.train_step)
    moved = []
    for _ in range(5):  # epochs of two steps: the first layer, the second one, both
        after, _ = step(state, digits(16), {}, KEY)
        moved.append(
            tuple(
                bool((after.params[part][i]["kernel"] != state.params[part][i]["kernel"]).any())
                for part in ("hidden", "decoder")
                for i in (0, 1)
            )
        )
        state = after
    first, second = (True, False, True, False), (False, True, False, True)
    assert moved == [first, first, second, second, (True,) * 4]


def test_the_only_layer_of_a_denoising_autoencoder_is_the_whole_of_it():
    core = experiment("model=denoising_autoencoder", "objective.epochs_a_layer=1")
    batch = core.prepare(digits(4), {}, KEY, train=True)
    model = core.trained_model({}, core.init({}, KEY).params, {})
    first, whole = (
        core.objective({})(model, batch, nnx.Rngs(sample=0), epoch)[0]["loss"]
        for epoch in (0.5, None)
    )
    np.testing.assert_allclose(first, whole, rtol=1e-6)


def test_the_contraction_is_the_squared_norm_of_the_jacobian():
    core = experiment(
        "model=autoencoder",
        "model.hidden=[6]",
        "model.latents=4",
        "model.activation=tanh",
        "objective.contraction=1.0",
    )
    objective = core.objective({})
    model = core.trained_model({}, core.init({}, KEY).params, {})
    x = jax.random.uniform(KEY, (1, 8, 8, 1))
    jacobian = jax.jacrev(lambda x: model.encode(x)[0])(x)
    repeated = jnp.repeat(x, 20_000, axis=0)
    estimates = objective.penalties(model, repeated, model.encode(repeated), nnx.Rngs(sample=0))
    assert float(estimates.mean()) == pytest.approx(float(jnp.sum(jacobian**2)), rel=0.03)


def test_sparsity_is_a_divergence_of_bernoulli_variables():
    assert float(bernoulli_kl(0.05, jnp.float32(0.05))) == pytest.approx(0, abs=1e-7)
    expected = 0.05 * np.log(0.05 / 0.2) + 0.95 * np.log(0.95 / 0.8)
    assert float(bernoulli_kl(0.05, jnp.float32(0.2))) == pytest.approx(expected, rel=1e-5)


def test_the_divergence_pulls_harder_than_the_squared_distance():
    code = jnp.array([[0.1, 0.9], [0.3, 0.7]])  # mean activations of 0.2 and 0.8
    pulls = {}
    for penalty in ("kl", "squared"):
        core = experiment("model=sparse_autoencoder", f"objective.penalty={penalty}")
        _, back = jax.vjp(functools.partial(core.objective({}).penalties, None, code), code, None)
        pulls[penalty] = back(jnp.array([1.0, 0.0]))[0]
    mean = np.array([0.2, 0.8])
    weight, each = 0.1, 0.5  # of the penalty, and of either example in a mean
    np.testing.assert_allclose(pulls["squared"][0], weight * each * 2 * (mean - 0.05), rtol=1e-5)
    wanted = weight * each * (mean - 0.05) / (mean * (1 - mean))
    np.testing.assert_allclose(pulls["kl"][1], wanted, rtol=1e-5)
    assert (pulls["kl"] > pulls["squared"]).all()


def test_the_logistic_likelihood_is_a_distribution_over_256_levels():
    levels = jnp.arange(256) / 255
    for output, log_scale in ((0.3, -3.0), (1.2, -1.0), (0.5, -5.5)):
        mass = jnp.exp(logistic(jnp.full(256, output), jnp.float32(log_scale), levels))
        assert float(mass.sum()) == pytest.approx(1, abs=1e-4)


def test_the_importance_weighted_bound_lies_above_the_elbo_and_grows_with_the_samples():
    """Of a linear decoder with a Gaussian likelihood log p(x) itself is known."""
    overrides = ["model=vae", "model.hidden=[]", "model.latents=2", "model.likelihood=gaussian"]
    bounds = []
    for k in (1, 10, 1000):
        core = experiment(*overrides, f"objective.importance_samples={k}")
        state = core.init({}, KEY)
        batch = digits(64)
        sums, _ = jax.jit(core.eval_step)(state.params, {}, batch | {"mask": jnp.ones(64)}, {})
        bounds.append(float(sums["iwae"]) / 64)
    kernel, bias = (np.asarray(state.params["output"][n], np.float64) for n in ("kernel", "bias"))
    variance = np.exp(2 * float(state.params["log_scale"]))
    covariance = kernel.T @ kernel + variance * np.eye(64)
    x = np.asarray(batch["image"], np.float64).reshape(64, -1) / 255 - bias
    _, logdet = np.linalg.slogdet(covariance)
    quadratic = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
    exact = (-0.5 * (quadratic + logdet + 64 * np.log(2 * np.pi))).mean()
    assert bounds[0] < bounds[1] < bounds[2] < exact + 0.05
    assert bounds[2] == pytest.approx(exact, abs=1.0)


def test_warm_up_and_free_bits_change_the_loss_and_not_the_reported_bound():
    plain, warm, free = (
        experiment("model=vae", "model.hidden=[8]", "model.latents=4", *extra).objective({})
        for extra in ([], ["objective.warmup_epochs=4.0"], ["objective.free_bits=0.5"])
    )
    kl = jnp.array([[0.1, 2.0], [0.3, 1.0]])
    assert warm.weight(1.0) == 0.25
    assert warm.weight(None) == plain.weight(0.0) == 1.0
    np.testing.assert_allclose(plain.charged(kl), [2.1, 1.3], rtol=1e-6)
    np.testing.assert_allclose(free.charged(kl), [2.5, 1.5], rtol=1e-6)  # 0.2 < 0.5 on average


def test_energy_distance_is_zero_for_one_distribution_and_sees_collapse():
    def distance(x, y, counted):
        return float(energy_distance(jnp.asarray(x), jnp.asarray(y), jnp.asarray(counted))[0])

    x, y = (np.random.default_rng(seed).normal(size=(400, 3)) for seed in (0, 1))
    counted = np.ones(400)
    assert abs(distance(x, y, counted)) < 0.05
    # points of a normal distribution in 3 dimensions are √(8/π) from the middle and 4/√π apart
    to_middle, apart = np.sqrt(8 / np.pi), 4 / np.sqrt(np.pi)
    assert distance(x, 0 * y, counted) == pytest.approx(2 * to_middle - apart, abs=0.05)
    half = np.arange(400) < 200
    padded = np.where(half[:, None], x, 100.0)
    alone = distance(x, y, half.astype(float))
    assert distance(padded, y, half.astype(float)) == pytest.approx(alone, abs=1e-5)


def test_adversarial_losses_by_hand():
    real, fake = jnp.array([2.0]), jnp.array([-1.0])
    log_sigmoid = lambda z: -np.log1p(np.exp(-z))  # noqa: E731
    expected = -log_sigmoid(2.0) - log_sigmoid(1.0)
    cases = {
        (adversarial.minimax, (("label_smoothing", 0.0),)): (expected, log_sigmoid(1.0)),
        (adversarial.non_saturating, (("label_smoothing", 0.0),)): (
            expected,
            -log_sigmoid(-1.0),
        ),
        (adversarial.least_squares, (("label_smoothing", 0.1),)): (
            0.5 * 1.1**2 + 0.5,
            0.5 * 4,
        ),
        (adversarial.hinge, (("margin", 1.0),)): (0.0, 1.0),
        (adversarial.wasserstein_gp, (("gradient_penalty", 10.0),)): (-3.0, 1.0),
    }
    for (loss, settings), wanted in cases.items():
        found = [float(value[0]) for value in loss(real, fake, **dict(settings))]
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    smooth, _ = adversarial.minimax(real, fake, label_smoothing=0.1)
    mixed = -0.9 * log_sigmoid(2.0) - 0.1 * log_sigmoid(-2.0) - log_sigmoid(1.0)
    assert float(smooth[0]) == pytest.approx(mixed, rel=1e-5)
    assert adversarial.as_adversarial(losses.hinge)[0] is adversarial.hinge


def test_the_generator_waits_for_the_discriminator():
    core = experiment(
        "model=gan", "model.hidden=[8]", "model.latents=4", "objective.discriminator_steps=3"
    )
    state = core.init({}, KEY)
    step = jax.jit(core.train_step)
    moved = []
    for _ in range(6):
        after, _ = step(state, digits(16), {}, KEY)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), after.params, state.params)
        moved.append({part: not all(jax.tree.leaves(same[part])) for part in same})
        state = after
    assert [m["generator"] for m in moved] == [False, False, True] * 2
    assert all(m["discriminator"] for m in moved)


def test_spectral_normalisation_makes_the_largest_singular_value_one():
    given = {"kernel_init": jax.nn.initializers.normal(2.0), "rngs": nnx.Rngs(0)}
    layer = Spectral(Dense(12, 7, use_bias=False, **given))
    layer.train()
    for _ in range(100):
        layer(jnp.ones((1, 12)))
    layer.eval()
    norm = np.linalg.norm(np.asarray(layer(jnp.eye(12))), 2)
    assert norm == pytest.approx(1, rel=1e-3)
