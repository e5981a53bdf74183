"""The server's part of artifacts: a run uploads one, another one asks for it by an alias."""

from wandb_server.server import ENTITY, Artifact, Server, operation, project_of


@operation("ArtifactType")
def _artifact_type(server: Server, v: dict) -> dict:
    return {"project": {"artifact": None}}


@operation("CreateArtifact")
def _create_artifact(server: Server, v: dict) -> dict:
    given = v["input"]
    made = Artifact(
        f"artifact{len(server.artifacts)}",
        given["artifactTypeName"],
        given["artifactCollectionName"],
        [alias["alias"] for alias in given.get("aliases") or []],
    )
    server.artifacts[made.id] = made
    sequence = {"id": f"sequence-{made.id}", "latestArtifact": None}
    answer = {"id": made.id, "state": made.state, "artifactSequence": sequence}
    return {"createArtifact": {"artifact": answer}}


@operation("CreateArtifactManifest", "UpdateArtifactManifest")
def _manifest(server: Server, v: dict) -> dict:
    made = v.get("artifactManifestID") or f"manifest-{v['artifactID']}"
    file = {"id": made, "uploadUrl": f"{server.url}/artifact/{made}", "uploadHeaders": []}
    answer = {"artifactManifest": {"id": made, "file": file}}
    return {"createArtifactManifest": answer, "updateArtifactManifest": answer}


@operation("CreateArtifactFiles")
def _artifact_files(server: Server, v: dict) -> dict:
    edges = []
    for file in v["input"]["artifactFiles"]:
        owner, name = file["artifactID"], file["name"]
        server.artifacts[owner].files.append(name)
        node = {"id": name, "name": name, "displayName": name, "artifact": {"id": owner}}
        node |= {"storagePath": name, "uploadUrl": f"{server.url}/artifact/{owner}/{name}"}
        node |= {"uploadHeaders": [], "uploadMultipartUrls": None}
        edges.append({"node": node})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


@operation("CommitArtifact")
def _commit(server: Server, v: dict) -> dict:
    artifact = server.artifacts[v["artifactID"]]
    artifact.state = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": ""}}}


@operation("ArtifactMembershipByName")
def _by_name(server: Server, v: dict) -> dict:
    artifact = _found(server, *v["name"].split(":"))
    membership = artifact and {
        "__typename": "ArtifactCollectionMembership",
        "id": artifact.id,
        "versionIndex": 0,
        "createdAt": "2024-01-01T00:00:00",
        "aliases": [],
        "artifactCollection": _collection(artifact, v),
        "artifact": _described(artifact, v),
    }
    return {"project": {"artifactCollectionMembership": membership}}


@operation("FetchArtifactManifest")
def _read_manifest(server: Server, v: dict) -> dict:
    file = {"directUrl": f"{server.url}/artifact/manifest-{v['id']}"}
    return {"artifact": {"currentManifest": {"file": file}}}


@operation("GetArtifactMembershipFileUrls")
def _file_urls(server: Server, v: dict) -> dict:
    artifact = _found(server, v["collection"], v["alias"])
    assert artifact
    prefix = f"{server.url}/artifact/{artifact.id}"
    nodes = [
        {"__typename": "File", "name": name, "directUrl": f"{prefix}/{name}"}
        for name in artifact.files
    ]
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    files = {"pageInfo": page, "edges": [{"node": node} for node in nodes]}
    collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
    return {"project": {"artifactCollection": collection}}


@operation("UseArtifact")
def _use(server: Server, v: dict) -> dict:
    artifact = server.artifacts[v["artifactID"]]
    artifact.used_by.append(v["runName"])
    return {"useArtifact": {"artifact": {"id": artifact.id}}}


def _found(server: Server, collection: str, alias: str) -> Artifact | None:
    """The newest version of this alias; each version is called v0."""
    for artifact in reversed(server.artifacts.values()):
        if artifact.collection == collection and alias in (*artifact.aliases, "v0"):
            return artifact
    return None


def _collection(artifact: Artifact, v: dict) -> dict:
    project = project_of(v["project"], v.get("entity") or ENTITY)
    return {"__typename": "ArtifactSequence", "name": artifact.collection, "project": project}


def _described(artifact: Artifact, v: dict) -> dict:
    nothing = ("description", "metadata", "historyStep", "commitHash", "updatedAt")
    return {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": _collection(artifact, v),
        "versionIndex": 0,
        "artifactType": {"name": artifact.type},
        "ttlDurationSeconds": -1,
        "ttlIsInherited": False,
        "tags": [],
        "state": artifact.state,
        "size": 1,
        "digest": "",
        "fileCount": len(artifact.files),
        "createdAt": "2024-01-01T00:00:00",
        "aliases": [],
        **dict.fromkeys(nothing),
    }
