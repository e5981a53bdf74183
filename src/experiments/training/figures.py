class RunFigures: ...


def figures_of_trial(trial):
    raise NotImplementedError
