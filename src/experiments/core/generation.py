"""Text from a language model, character by character."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.experiment import Experiment, Hparams, Tree
from experiments.data.text import encode
from experiments.errors import UserError


def generate(
    experiment: Experiment,
    hparams: Hparams,
    weights: tuple[Tree, Tree],
    characters: str,
    *,
    length: int,
    prompt: str | None,
    temperature: float,
    seed: int,
) -> str:
    """Return the text that a language model writes after a prompt, without the prompt.

    Args:
      experiment, hparams: the pure functions of the model and its numbers.
      weights: (params, model_state).
      characters: the characters of the training text, in the order of their codes.
      length: characters to write.
      prompt: text that it reads first; None: a new line, or the first character that it knows.
      temperature: divides the logits before a character is drawn; 0 takes the likeliest.
      seed: of the draws.

    Raises:
      UserError: the model writes no text, or the prompt has a character that it never saw.
    """
    if prompt is None:
        prompt = "\n" if "\n" in characters else characters[0]
    try:
        codes = encode(prompt, characters).astype(np.int32)
    except UserError as error:
        raise UserError(f"sample.prompt: {error}") from error
    key = jax.random.key(seed)
    written = _write(experiment, length, hparams, weights, codes, np.float32(temperature), key)
    return "".join(characters[code] for code in np.asarray(written))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _write(
    experiment: Experiment,
    length: int,
    hparams: Hparams,
    weights: tuple[Tree, Tree],
    codes: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
) -> jax.Array:
    model: Any = experiment.trained_model(hparams, *weights)
    if not hasattr(model, "advance"):
        raise UserError(f"{type(model).__name__} writes no text: use model=lstm, gru or rnn")
    logits, carries = model.advance(codes[None], model.start(1))

    def step(state, key):
        logits, carries = state
        drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-9))
        chosen = jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))
        following, carries = model.advance(chosen[:, None], carries)
        return (following[:, -1].astype(jnp.float32), carries), chosen[0]

    start = logits[:, -1].astype(jnp.float32), carries
    return jax.lax.scan(step, start, jax.random.split(key, length))[1]
