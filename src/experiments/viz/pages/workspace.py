"""W&B dashboards as code: a saved view per family of models, and a report.

`python report.py <study, folder of runs, or project> wandb=workspace` builds them with
wandb-workspaces. A family is an objective: which panels are useful depends on it and not on the
model.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.core.config import locate
from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.tracking.wandb import STATE
from experiments.viz.pages.page import rank_colours
from experiments.viz.pages.records import RunData, read_run
from experiments.viz.pages.settings import differences
from experiments.viz.pages.wandb_specification import specification

# the parameters of a view if no runs say which ones were varied
PARAMETERS = ("optim.learning_rate", "optim.weight_decay", "model.dropout", "data.batch_size")
SEARCHED_PARTS = ("model", "objective", "loss", "init", "optim", "schedule", "data", "seed")
MOST_PARAMETERS = 8  # axes that fit a plot of parallel coordinates
LOGARITHMIC = ("learning_rate", "weight_decay", "l1", "l2", "beta", "scale", "stddev")
TRAINING = ("train/loss", "learning_rate", "grad_norm", "examples_per_second")
SYSTEM = ("cpu", "memory_percent", "gpu.0.gpu", "gpu.0.memoryAllocated", "proc.memory.rssMB")


@dataclass(frozen=True)
class Family:
    """The runs of one objective.

    Attributes:
        name: of the objective.
        metric: the metric that decides, such as `val/accuracy`.
        goal: `max` or `min`.
        parameters: the config values that were varied.
        media: the names of figures.
        ranked: the ids of runs, best first.
    """

    name: str
    metric: str
    goal: str
    parameters: Sequence[str]
    media: Sequence[str]
    ranked: Sequence[str]


def publish(target: str, conf: Path) -> None:
    """Build the dashboards of a folder or a project; save them in W&B, or else as JSON files.

    Raises:
        UserError: wandb-workspaces is missing, or the folder holds no run that W&B has seen.
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError("wandb=workspace needs: pip install 'experiments[dashboard]'") from error
    import wandb

    folder = Path(target)
    if folder.is_dir():
        entity, project, families = families_of(folder)
    else:
        entity, _, project = target.rpartition("/")
        families, folder = every_family(conf), Path()
    online = wandb.login(prompt=False, verify=False)
    # nobody can be asked about the project without an account
    entity = (entity or wandb.Api().default_entity or "") if online else ""
    where: dict[str, Any] = {"entity": entity, "project": project}
    views = {family.name: workspace(family, where) for family in families}
    for name, dashboard in (views | {"report": report(families, where)}).items():
        if online:
            dashboard.save()
            print(f"{name}: {dashboard.url}")
        else:
            path = folder / f"workspace_{name}.json"
            write_whole(path, json.dumps(specification(dashboard), indent=1) + "\n")
            print(path)
    if not online:
        print("no W&B account is configured here; after `wandb login` the same command saves them")


def families_of(folder: Path) -> tuple[str, str, list[Family]]:
    """Return (entity, project, families) of the runs below a folder that W&B has seen."""
    runs: dict[str, dict[str, RunData]] = defaultdict(dict)  # by objective and by id
    for state in sorted(folder.rglob(STATE)):
        run, known = read_run(state.parent, folder), json.loads(state.read_text())
        runs[run.config["objective._target_"]][known["id"]] = run
        project = known.get("project") or run.config["logger.project"]
    if not runs:
        raise UserError(f"no run below {folder} was logged to W&B; train with logger=wandb")
    first = next(iter(next(iter(runs.values())).values())).config
    families = [_family(target, members) for target, members in runs.items()]
    return first.get("logger.entity") or "", project, families


def every_family(conf: Path) -> list[Family]:
    """Return a family per objective of the package, with the usual parameters."""
    paths = sorted((conf / "objective").glob("[!_]*.yaml"))
    targets = {yaml.safe_load(path.read_text())["_target_"] for path in paths}
    return [_family(target, {}) for target in sorted(targets)]


def _family(target: str, runs: Mapping[str, RunData]) -> Family:
    name, goal = locate(target).monitor
    metric = f"val/{name}"
    best = {run_id: run.summary.get("best", {}).get(metric) for run_id, run in runs.items()}
    values = {run_id: value for run_id, value in best.items() if isinstance(value, int | float)}
    differing = [n for n in differences(list(runs.values())) if not n.endswith("_target_")]
    varied = [name for name in differing if name.partition(".")[0] in SEARCHED_PARTS]
    return Family(
        name=target.rpartition(".")[2],
        metric=metric,
        goal=goal,
        parameters=varied[:MOST_PARAMETERS] or PARAMETERS,
        media=list(dict.fromkeys(path.stem for run in runs.values() for path in run.figures)),
        ranked=sorted(values, key=values.__getitem__, reverse=goal == "max"),
    )


def panels(family: Family) -> dict[str, list[Any]]:
    """Return the panels of a family by the title of their section."""
    import wandb_workspaces.reports.v2 as wr

    best = wr.SummaryMetric(f"best.{family.metric}")
    logarithmic = [name for name in family.parameters if name.endswith(LOGARITHMIC)]
    axes = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=name in logarithmic or None)
        for name in family.parameters
    ]
    axes.append(wr.ParallelCoordinatesPlotColumn(metric=best))
    scatter = [
        wr.ScatterPlot(title=f"{family.metric} by {name}", x=wr.Config(name), y=best, log_x=True)
        for name in dict.fromkeys(["optim.learning_rate", *logarithmic])
    ]
    importance = wr.ParameterImportancePlot(with_respect_to=f"best.{family.metric}")
    validation = dict.fromkeys([family.metric, "val/loss"])
    shown: dict[str, list[Any]] = {
        "Validation": [wr.LinePlot(title=name, x="epoch", y=[name]) for name in validation],
        "Training": [wr.LinePlot(title=name, x="epoch", y=[name]) for name in TRAINING],
        "Search": [wr.ParallelCoordinatesPlot(columns=axes), importance, *scatter],
        "Comparison": [wr.RunComparer(diff_only="split")],
        "System": [wr.LinePlot(title=name, y=[f"system/{name}"]) for name in SYSTEM],
        "Figures": [wr.MediaBrowser(title=name, media_keys=[name]) for name in family.media],
    }
    return {title: found for title, found in shown.items() if found}


def workspace(family: Family, where: Mapping[str, Any]) -> Any:
    """Return the saved view of a family: its own runs, best first and coloured by rank."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Ordering, Summary, Tags

    colours = rank_colours(len(family.ranked))[::-1]  # the best is the brightest
    return ws.Workspace(
        **where,
        name=family.name,
        sections=[
            ws.Section(name=title, panels=inside, is_open=title != "System")
            for title, inside in panels(family).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[Tags().isin([family.name])],
            order=[Ordering(Summary(f"best.{family.metric}"), ascending=family.goal == "min")],
            run_settings=dict(zip(family.ranked, map(ws.RunSettings, colours), strict=True)),
            pinned_columns=[f"summary:best.{family.metric}"],
        ),
    )


def report(families: Sequence[Family], where: Mapping[str, Any]) -> Any:
    """Return one document with the panels of every family."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import Tags

    blocks: list[Any] = [wr.TableOfContents()]
    for family in families:
        runs = wr.Runset(
            **where,
            name=family.name,
            filters=[Tags().isin([family.name])],
            order=[wr.OrderBy(f"best.{family.metric}", ascending=family.goal == "min")],
        )
        blocks.append(wr.H1(family.name))
        for title, inside in panels(family).items():
            blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=inside)]
    title = f"The runs of {where['project']}"
    return wr.Report(**where, title=title, blocks=blocks)
