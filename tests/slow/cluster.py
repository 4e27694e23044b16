"""As much of Kubernetes' API as starts, watches and removes pods, with podman for a node.

No cluster can be had where only packages are at hand. Here the pods that Airflow describes do run, each as one
container with the limits, rights, variables and volumes of its description; what a scheduler, a kubelet or an
admission controller would add is not tested by it.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

from tests.slow import podman

PODS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods(/(?P<name>[^/]+))?(/(?P<log>log))?")
EVENTS = re.compile(r"/api/v1/namespaces/[^/]+/events")
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
TOKEN = "let-me-in"
PORTION_S = 1.0


class Cluster:
    """Pods by name, their volume claims (name -> folder) and secrets (name -> values)."""

    def __init__(
        self,
        engine: dict[str, str],
        claims: dict[str, Path],
        secrets: dict[str, dict[str, str]],
        network: str = "none",
    ) -> None:
        self.engine, self.claims, self.secrets, self.network = engine, claims, secrets, network
        self.pods: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        """Descriptions of all pods that there ever were, as Airflow sent them."""
        self.asked: set[tuple[str, str]] = set()
        """What Airflow has asked for, as a Role grants it: (resource, verb)."""
        self.lock = threading.Lock()

    def create(self, namespace: str, pod: dict[str, Any]) -> dict[str, Any]:
        """Start the one container of a pod."""
        self.created.append(json.loads(json.dumps(pod)))
        metadata, spec = pod["metadata"], pod["spec"]
        metadata |= {"namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        self.pods[metadata["name"]] = pod
        container = spec["containers"][0]
        there = podman.run(self.engine, "image", "exists", container["image"]).returncode == 0
        pod["cslm"] = "started" if there else "no image"
        if there:
            options = [*self._rights(spec, container), *self._volumes(spec, container)]
            options += [f"--env={name}={value}" for name, value in self._variables(container)]
            result = podman.run(
                self.engine,
                *("run", "--detach", f"--name={metadata['name']}", *options),
                f"--entrypoint={json.dumps(container['command'])}",
                *(container["image"], *container["args"]),
            )
            assert result.returncode == 0, result.stderr
        return self.seen(pod)

    def _rights(self, spec: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
        rights, user = container["securityContext"], spec["securityContext"]
        assert rights["readOnlyRootFilesystem"]
        assert not rights["allowPrivilegeEscalation"]
        yield from ("--read-only", "--read-only-tmpfs=false", "--security-opt=no-new-privileges")
        yield from (f"--cap-drop={name}" for name in rights["capabilities"]["drop"])
        yield f"--user={user['runAsUser']}:{user['runAsGroup']}"
        limits = container["resources"]["limits"]
        yield f"--memory={limits['memory'].replace('Gi', 'g').replace('Mi', 'm')}"
        yield f"--network={self.network}"

    def _volumes(self, spec: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in container["volumeMounts"]:
            volume, access = volumes[mount["name"]], "ro" if mount.get("readOnly") else "rw"
            if "persistentVolumeClaim" in volume:
                folder = self.claims[volume["persistentVolumeClaim"]["claimName"]]
                yield f"--volume={folder}:{mount['mountPath']}:{access}"
            else:
                yield f"--mount=type=tmpfs,destination={mount['mountPath']},{access}"

    def _variables(self, container: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for variable in container["env"]:
            if "value" in variable:
                yield variable["name"], variable["value"]
                continue
            reference = variable["valueFrom"]["secretKeyRef"]
            value = self.secrets[reference["name"]].get(reference["key"])
            assert value is not None or reference["optional"]
            if value is not None:
                yield variable["name"], value

    def seen(self, pod: dict[str, Any]) -> dict[str, Any]:
        """A pod with its status."""
        name, image = pod["metadata"]["name"], pod["spec"]["containers"][0]["image"]
        started = {"type": "PodScheduled", "status": "True"}
        if pod["cslm"] == "no image":
            phase = "Pending"
            state: dict[str, Any] = {"waiting": {"reason": "ErrImageNeverPull", "message": f"{image}: no such"}}
        else:
            [facts] = json.loads(podman.run(self.engine, "inspect", name).stdout)
            phase, state = _state(facts["State"])
        status = {"name": "base", "image": image, "imageID": "", "ready": False, "restartCount": 0}
        shown = {key: value for key, value in pod.items() if key != "cslm"}
        return shown | {
            "status": {
                "phase": phase,
                "conditions": [started],
                "containerStatuses": [status | {"state": state}],
            }
        }

    def log(self, name: str, query: dict[str, str]) -> str:
        """What a pod has printed."""
        options = ["--timestamps"] if query.get("timestamps", "").lower() == "true" else []
        if "sinceSeconds" in query:
            options.append(f"--since={int(time.time()) - int(query['sinceSeconds'])}")
        result = podman.run(self.engine, "logs", *options, name)
        return result.stdout + result.stderr

    def remove(self, name: str) -> dict[str, Any]:
        """End and forget a pod."""
        pod = self.pods.pop(name)
        podman.run(self.engine, "rm", "--force", "--time=5", name)
        return {"kind": "Status", "status": "Success", "metadata": {}, "details": pod["metadata"]["name"]}


def _state(facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if facts["Status"] == "running":
        return "Running", {"running": {"startedAt": facts["StartedAt"]}}
    if facts["Status"] != "exited":
        return "Pending", {"waiting": {"reason": "ContainerCreating"}}
    code = facts["ExitCode"]
    reason = "OOMKilled" if facts["OOMKilled"] else "Error" if code else "Completed"
    ended = {"exitCode": code, "reason": reason, "startedAt": facts["StartedAt"], "finishedAt": _now()}
    return "Failed" if code else "Succeeded", {"terminated": ended}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _selected(pod: dict[str, Any], selector: str) -> bool:
    """Whether a pod's labels are such as `a=b,c!=d,!e` asks for."""
    labels = pod["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        name, _, value = term.partition("!=" if "!=" in term else "=")
        if term.startswith("!") and term[1:] in labels:
            return False
        if not term.startswith("!") and (labels.get(name) == value) == ("!=" in term):
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        url = urlparse(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, _problem(401, "Unauthorized"))
            return
        if EVENTS.fullmatch(url.path):
            self.cluster.asked.add(("events", "watch" if "watch" in query else "list"))
            if "watch" in query:
                time.sleep(PORTION_S)
                self._send(200, "")
            else:
                self._send(200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": []})
            return
        match = PODS.fullmatch(url.path)
        if match is None:
            self._send(404, _problem(404, "NotFound"))
            return
        resource = "pods/log" if match["log"] else "pods"
        verb = VERBS[method] if method != "GET" or match["name"] else "list"
        self.cluster.asked.add((resource, verb))
        with self.cluster.lock:
            self._send(*self._pods(method, match, query, json.loads(body) if body else {}))

    def _pods(
        self, method: str, match: re.Match[str], query: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, Any]:
        cluster, name = self.cluster, match["name"]
        if method == "POST":
            if body["metadata"]["name"] in cluster.pods:
                return 409, _problem(409, "AlreadyExists")
            return 201, cluster.create(match["namespace"], body)
        if name is None:
            pods = [p for p in cluster.pods.values() if _selected(p, query.get("labelSelector", ""))]
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": [cluster.seen(p) for p in pods]}
        if name not in cluster.pods:
            return 404, _problem(404, "NotFound")
        if match["log"]:
            return 200, cluster.log(name, query)
        if method == "DELETE":
            return 200, cluster.remove(name)
        if method == "PATCH":
            cluster.pods[name]["metadata"]["labels"] |= body["metadata"]["labels"]
        return 200, cluster.seen(cluster.pods[name])

    def _send(self, code: int, answer: Any) -> None:
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        with suppress(BrokenPipeError):  # who watches goes away when there is nothing more to see
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _problem(code: int, reason: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}


@contextmanager
def serve(cluster: Cluster, folder: Path) -> Iterator[dict[str, str]]:
    """The cluster's API on a free port, and the variables that lead Airflow to it."""
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    configuration = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(configuration))
    try:
        yield {"KUBECONFIG": str(folder / "kubeconfig")}
    finally:
        server.shutdown()
        server.server_close()
