"""The server's part of workspaces and reports: they are saved as views, a JSON text each."""

import json

from wandb_server.server import Server, operation, project_of


@operation("UpsertView2", "upsertView", "UpsertView")
def _upsert(server: Server, v: dict) -> dict:
    json.loads(v["spec"])
    name = v.get("id") or f"view{len(server.views)}"
    new = name not in server.views
    fields = ("type", "name", "displayName", "description", "spec")
    view = {"id": name, **{field: v.get(field) for field in fields}}
    view["project"] = project_of(v["projectName"], v.get("entityName"))
    server.views[name] = server.views.get(name, {}) | view
    return {"upsertView": {"view": server.views[name], "inserted": new}}


@operation("View")
def _read(server: Server, v: dict) -> dict:
    found = [
        view
        for view in server.views.values()
        if view["type"] == v.get("viewType") and v.get("viewName") in (None, view["name"])
    ]
    project = project_of(v["name"], v.get("entityName"))
    return {"project": project | {"allViews": {"edges": [{"node": view} for view in found]}}}


@operation("GetProject", "Project", "ProjectInternalId", "GetProjectByName")
def _project(server: Server, v: dict) -> dict:
    name = v.get("project") or v.get("projectName") or v.get("name")
    return {"project": project_of(name, v.get("entity") or v.get("entityName"))}


@operation("CreateProject", "UpsertModel")
def _create_project(server: Server, v: dict) -> dict:
    given = v["input"]
    project = project_of(given["name"], given.get("entityName"))
    return {"upsertModel": {"model": project, "project": project, "inserted": True}}


@operation("GetProjects", "Projects")
def _projects(server: Server, v: dict) -> dict:
    return {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
