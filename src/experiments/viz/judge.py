"""A classifier that this project trained, as the judge of generated images."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from omegaconf import OmegaConf

from experiments.data.augment import resize
from experiments.errors import UserError
from experiments.models.kinds import Function
from experiments.training.restored import saved_weights
from experiments.training.run_folder import saved_config
from experiments.training.session import open_session
from experiments.viz.frechet import frechet_distance

BATCH = 500  # images at once


class Judge:
    """The classifier of a run folder.

    Its features are what its last layer, `output`, reads; of LeNet-5 the 84 units of F6.
    """

    def __init__(self, folder: Path, input_shape: tuple[int, ...]):
        config = OmegaConf.to_container(saved_config(folder, []), resolve=True)
        assert isinstance(config, dict)
        session = open_session({str(key): value for key, value in config.items()})
        experiment = session.experiment
        self.names = session.splits.class_names
        channels = experiment.input_shape[-1:]
        if tuple(input_shape[-1:]) != channels:
            raise UserError(
                f"objective.classifier={folder} was trained on images of {channels[0]} channels"
            )
        weights, _ = saved_weights(session, folder)
        mean, std = (np.float32(getattr(experiment.pipeline, name)) for name in ("mean", "std"))

        @jax.jit
        def look(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = resize((images - mean) / std, experiment.input_shape[:2])
            model: Any = experiment.trained_model(session.hparams, *weights)
            if not isinstance(getattr(model, "output", None), nnx.Module):
                raise UserError(
                    f"objective.classifier={folder}: it must have a last layer `output`"
                )
            output, model.output = model.output, Function(lambda features: features)
            features = model(x)
            return features, jax.nn.softmax(output(features))

        self._look = look

    def look(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(features [n, d], probabilities [n, classes]) of images [n, H, W, C] in 0..1."""
        parts = [
            self._look(jnp.asarray(images[start : start + BATCH], jnp.float32))
            for start in range(0, len(images), BATCH)
        ]
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features, probabilities

    def compare(self, generated: np.ndarray, real: np.ndarray) -> tuple[dict[str, float], Any]:
        """What it makes of generated images beside real ones, and how many it takes for each class.

        `frechet`: the Fréchet distance of the features, not the Inception FID; `confidence`: the
        mean probability of the likeliest class; `rarest_class`: the share of the rarest one, 1/C
        if all are equally frequent and 0 if one is missing.
        """
        features, probabilities = self.look(generated)
        counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
        values = {
            "frechet": frechet_distance(features, self.look(real)[0]),
            "confidence": float(probabilities.max(axis=1).mean()),
            "rarest_class": float(counts.min() / counts.sum()),
        }
        return values, counts
