"""The names that configs of run folders, studies and sweep files may call."""

import pytest

from experiments.core import trust
from experiments.errors import UserError
from support import ROOT, composed


@pytest.fixture(autouse=True)
def as_before():
    yield
    trust.allow([ROOT / "conf"], [])


def vet(name: str, key: str = "_target_") -> None:
    config = {"model": {"layers": [{key: name}]}}
    trust.vet(config, "R")
    trust.vet_objects(config, "R")


@pytest.mark.parametrize(
    "name",
    [
        "experiments.models.mlp.MLP",
        "experiments.core.optim.muon",
        "experiments.tracking.wandb.Wandb",  # which a file of conf/ names
        "optax.scale_by_adam",
        "optax.nadam",  # a partial function
        "optax.contrib.muon",
        "jax.nn.initializers.he_normal",
        "jax.nn.relu",
        "flax.nnx.Linear",
    ],
)
def test_what_a_config_is_made_of_may_be_named(name):
    vet(name)


@pytest.mark.parametrize("key", ["_target_", "rule"])
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "hydra.utils.get_method",
        "experiments.search.slurm.submit_run",
        "experiments.core.config.locate",
        "experiments.core.optim.locate",  # imported there
        "experiments.models.mlp.nnx.summary.yaml.unsafe_load",
        "jax.numpy.load",  # unpickles
        "jax.numpy.save",
        "flax.linen.fp8_ops.pxla.xb.register_plugin",
        "experiments.core.initializers.jax.profiler.save_device_memory_profile",
        "jax.experimental.serialize_executable.deserialize_and_load",
        "optax.__builtins__.eval",
        "optax._src.base.Any",
        "optax",
        "${model.name}",
        "",
    ],
)
def test_anything_else_is_refused(name, key):
    with pytest.raises(UserError, match=r"^model\.layers\.0\.(_target_|rule)"):
        vet(name, key)


def test_a_user_allows_packages_by_name_or_in_config_files_of_their_own(tmp_path, monkeypatch):
    for package in ("theirs", "mine"):
        (tmp_path / f"{package}.py").write_text("from os import system\ndef net(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"allow=\[theirs\]"):
        vet("theirs.net")
    trust.allow([ROOT / "conf"], ["theirs"])
    vet("theirs.net")
    assert trust.arguments() == ["allow=[theirs]"]
    with pytest.raises(UserError, match=r"theirs.system: .* which is of posix"):
        vet("theirs.system")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text('layers: [{"_target_": mine.net}]\n')
    with pytest.raises(UserError, match=r"allow=\[mine\]"):
        vet("mine.net")
    trust.allow([ROOT / "conf", tmp_path / "conf"], [])
    vet("mine.net")
    with pytest.raises(UserError, match="must be a list of packages"):
        trust.allow([], "os")


def test_a_config_of_others_reads_no_environment_that_an_own_file_does_not(tmp_path):
    config = {"name": "${oc.env:SECRET}", "b": "${.name} ${now:%Y} ${oc.select:data.x,null}"}
    for text in ("${oc.env:SECRET}", "${oc.${b}:SECRET}", "${oc.decode:${b}}"):
        with pytest.raises(UserError, match="may not read this; say name="):
            trust.vet(config | {"name": text}, "R")
    (tmp_path / "own.yaml").write_text("name: ${oc.env:SECRET}")
    trust.allow([tmp_path], [])
    trust.vet(config, "R")


def test_all_shipped_configs_may_be_named():
    for overrides in ([], ["experiment=vae_mnist"], ["experiment=dcgan_mnist"], ["model=lstm"]):
        trust.vet(composed(*overrides), "R")
        trust.vet_objects(composed(*overrides), "R")
