"""A trace of some steps by the JAX profiler, on request."""

import logging
from pathlib import Path

import jax

log = logging.getLogger(__name__)


class Profile:
    """Records `steps` steps after the first one into `directory`/profile; 0 records none."""

    def __init__(self, directory: Path, steps: int):
        self.folder, self.steps = directory / "profile", steps
        self.since: int | None = None

    def before(self, step: int) -> None:
        """Called with the steps done before a dispatch; the first one only warms up."""
        if self.steps and self.since is None and step > 0:
            jax.profiler.start_trace(self.folder)
            self.since = step

    def after(self, step: int) -> None:
        """Called with the steps done after a dispatch."""
        if self.since is not None and self.steps and step - self.since >= self.steps:
            jax.profiler.stop_trace()
            log.info("profile of %d steps: %s", step - self.since, self.folder)
            self.steps = 0
