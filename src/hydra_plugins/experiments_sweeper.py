"""The adapter of Hydra's `-m` to a study: `run -m optim=adam,sgd model.dropout=0.0,0.5`.

Hydra loads plugins only from a package of this name, at every start: this file imports nothing
that is not needed for that.
"""

import uuid
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


def _run_help(*, _root_: Any) -> str:
    from experiments.cli import help as cli_help  # as `run --help` alone needs it

    return cli_help.of_composed(_root_)


# here, so that the processes that launchers of Hydra's start have them too
OmegaConf.register_new_resolver(
    "unique", lambda: uuid.uuid4().hex[:6], use_cache=True, replace=True
)
OmegaConf.register_new_resolver("run_help", _run_help, replace=True)


class OwnConfigs(SearchPathPlugin):
    """Has Hydra's compose API read a further folder, as `--config-dir` does for its `main`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder of the configs that a search composes, if they have one."""
        from experiments.search import configs

        if configs.beside is not None:
            search_path.append("command-line", f"file://{configs.beside}")


class StudySweeper(Sweeper):
    """Searches with the engine behind `sweep`; the study is in `hydra.sweep.dir`.

    Args:
      options: the search's own keys, such as n_trials, as `cli.startup` passes them on.
    """

    def __init__(self, options: DictConfig):
        self.options: Any = OmegaConf.to_container(options)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Note where configs are read and where the study goes."""
        sources = hydra_context.config_loader.get_search_path().get_path()
        main = next(source for source in sources if source.provider == "main")
        self.config_folder = Path(main.path.removeprefix("file://"))
        for source in sources:
            if source.provider == "command-line":
                self.options["config_dir"] = source.path.removeprefix("file://")
        self.study = Path(self.options.pop("study", None) or config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        """Make the study, train its trials and show them; raise `Exit` if it is cut short."""
        from experiments.cli.main import job
        from experiments.search.local import standing_by

        options, config_folder = self.options, self.config_folder
        with job(), standing_by(options) as workers:
            from experiments.search.actions import begin
            from experiments.search.plan import plan_of_arguments

            plan = plan_of_arguments(arguments, options, config_folder)
            begin(plan, self.study.absolute(), config_folder, options, workers)
