"""A study without a training, for reports and their pages."""

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from experiments.search.study import name_metrics
from experiments.viz.pages.study_page import StudyData


def made_up_study(
    metrics: tuple[str, ...] = ("val/accuracy",), command: str = "python run.py optim=adam"
) -> StudyData:
    """A study of 12 trials: a list, a log range, a parameter that not every trial has."""
    goals = ["maximize", "minimize"][: len(metrics)]
    study = optuna.create_study(study_name="<made up>", directions=goals)
    distributions = {
        "optim": CategoricalDistribution(["adam", "sgd"]),
        "optim.learning_rate": FloatDistribution(1e-5, 0.1, log=True),
        "optim.momentum": FloatDistribution(0.5, 0.99),
    }
    for i in range(12):
        values = {"optim": ["adam", "sgd"][i % 2], "optim.learning_rate": 10 ** (-1 - i / 3)}
        if i % 2:
            values["optim.momentum"] = 0.5 + i / 40
        diverged, score = i == 3, 0.9 - abs(i - 6) / 20
        reason = {"state": "diverged", "reason": "diverged at step 7"}
        trial = create_trial(
            state=TrialState.FAIL if diverged else TrialState.COMPLETE,
            values=None if diverged else [score, 1000.0 - 50 * i][: len(metrics)],
            params=values,
            distributions={name: distributions[name] for name in values},
            user_attrs={"seconds": 1.5} | (reason if diverged else {"state": "finished"}),
            intermediate_values={e + 1: score * x for e, x in enumerate((0.5, 0.8, 1))},
        )
        study.add_trial(trial)
    name_metrics(study, list(metrics))
    return StudyData(study, "random", metrics[0], command, {"test/accuracy": 0.87})
