"""Text from a language model, character by character."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.experiment import Tree
from experiments.data.text import encode
from experiments.errors import UserError
from experiments.training.session import Session


class Generator:
    """Lets the models of a session write `length` characters; compiles once for all weights."""

    def __init__(self, session: Session, length: int):
        self.session, self.length = session, length
        self.characters = "".join(session.splits.class_names)
        self._write = jax.jit(self._written)

    def __call__(
        self, weights: tuple[Tree, Tree], *, prompt: str | None, temperature: float, seed: int
    ) -> str:
        """What the model writes after the prompt, which is not repeated.

        Args:
          weights: (params, model_state).
          prompt: what it reads before; None: a new line, or the first character that it knows.
          temperature: by which the logits are divided before a character is drawn; 0 takes the
            likeliest.
          seed: of what is drawn.

        Raises:
          UserError: the model writes no text, or the prompt has a character that it never saw.
        """
        if prompt is None:
            prompt = "\n" if "\n" in self.characters else self.characters[0]
        try:
            codes = encode(prompt, self.characters).astype(np.int32)
        except UserError as error:
            raise UserError(f"sample.prompt: {error}") from error
        key = jax.random.key(seed)
        written = np.asarray(self._write(weights, codes, np.float32(temperature), key))
        return "".join(self.characters[code] for code in written)

    def _written(
        self, weights: tuple[Tree, Tree], codes: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> jax.Array:
        session = self.session
        model: Any = session.experiment.trained_model(session.hparams, *weights)
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
        return jax.lax.scan(step, start, jax.random.split(key, self.length))[1]
