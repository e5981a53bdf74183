"""Which epoch was best, and whether it is time to stop."""

from dataclasses import dataclass, field
from typing import Any, Self

from experiments.errors import UserError, suggest


@dataclass
class Watch:
    """Follows the monitored validation metric from epoch to epoch."""

    metric: str  # such as "accuracy"
    mode: str  # "min", "max" or, where no metric tells, "last"
    patience: int | None
    best: dict = field(default_factory=dict)  # the line of the best epoch
    stale: int = 0  # epochs since then

    @classmethod
    def of(cls, session: Any) -> Self:
        """What the config of a session asks for, or its objective."""
        trainer = session.trainer
        metric, mode = session.experiment.objective(session.hparams).monitor
        if trainer.monitor not in (None, metric):
            metric, mode = trainer.monitor, "max" if "accuracy" in trainer.monitor else "min"
        return cls(metric, trainer.monitor_mode or mode, trainer.patience)

    @property
    def told(self) -> dict[str, Any]:
        """What a summary says: the line of the best epoch, and what made it the best."""
        return {"best": self.best, "monitor": f"val/{self.metric}", "monitor_mode": self.mode}

    def better(self, line: dict) -> bool:
        """Takes an epoch's line; True if no earlier epoch was as good."""
        name = f"val/{self.metric}"
        if name not in line:
            known = [key.removeprefix("val/") for key in line if key.startswith("val/")]
            hint = suggest(self.metric, known) or f"; there are {', '.join(known)}"
            raise UserError(f"trainer.monitor={self.metric} is no validation metric{hint}")
        value = line[name]
        previous = self.best.get(name)
        improved = value == value and (  # NaN is never better
            previous is None
            or self.mode == "last"
            or (value < previous if self.mode == "min" else value > previous)
        )
        self.stale = 0 if improved else self.stale + 1
        if improved:
            self.best = dict(line)
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.stale >= self.patience
