"""What the tests know of W&B: a server to log to, and a reader of what an offline run wrote."""

from wandb_server import sweeps, views

__all__ = ["sweeps", "views"]
