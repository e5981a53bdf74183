"""W&B for the tests: a server to log to, and a reader of the files of offline runs."""

from wandb_server import artifacts, sweeps, views

__all__ = ["artifacts", "sweeps", "views"]
