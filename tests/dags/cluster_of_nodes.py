"""As much of a cluster's API as knows TrainJobs, their pods and events. Nothing runs in it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

PATH = re.compile(
    r"/(api|apis/trainer.kubeflow.org)/v1(alpha1)?/namespaces/cslm/(?P<kind>\w+)(/(?P<name>[^/]+))?(/log)?"
)
STAMP = "2026-11-27T21:00:{:02}.000000000Z "


class Api:
    """What there is, and what was asked for."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.logs: dict[str, list[str]] = {}
        self.refusal: tuple[int, str] | None = None
        """Code and message for who would make a TrainJob; an empty message: no such kind."""
        self.made: list[dict[str, Any]] = []
        self.removed: list[str] = []
        self.asked: set[tuple[str, str]] = set()

    def end(self, kind: str, message: str = "") -> None:
        """Let all TrainJobs end."""
        for job in self.jobs.values():
            job["status"] = {"conditions": [{"type": kind, "status": "True", "message": message}]}

    def add_pod(self, index: int, phase: str, code: int | None = None, **changes: Any) -> None:
        """A pod of a node; the later it is added the later it has ended."""
        name = f"job-node-0-{index}-abcde"
        ended = {"exitCode": code, "finishedAt": f"2026-11-27T21:00:{len(self.pods):02}Z", "reason": "Error"}
        state = {"running": {}} if code is None else {"terminated": ended | changes.pop("terminated", {})}
        status = {"name": "node", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
        self.pods.append(
            {
                "metadata": {"name": name, "namespace": "cslm", "annotations": annotations}
                | changes.pop("metadata", {}),
                "status": {"phase": phase, "containerStatuses": [status]} | changes,
            }
        )

    def answer(
        self, method: str, kind: str, name: str | None, log: bool, body: Any, query: Any
    ) -> tuple[int, Any]:
        verbs = {"POST": "create", "DELETE": "delete", "GET": "get" if name else "list"}
        self.asked.add((f"{kind}/log" if log else kind, verbs[method]))
        if kind == "events":
            event = {"metadata": {}, "involvedObject": {}, "reason": "FailedCreate"}
            return 200, {"items": [event | {"message": text} for text in self.events]}
        if log:
            stamps = "timestamps" in query
            return 200, "".join(
                (STAMP.format(at) if stamps else "") + line + "\n"
                for at, line in enumerate(self.logs.get(str(name), []))
            )
        if kind == "pods":
            return 200, {"items": self.pods}
        if method == "POST":
            if self.refusal:
                return self.refusal
            self.made.append(body)
            self.jobs[body["metadata"]["name"]] = body
            return 201, body
        if name not in self.jobs:
            return 404, "not found"
        if method == "DELETE":
            self.removed.append(str(name))
            return 200, self.jobs.pop(str(name))
        return 200, self.jobs[str(name)]


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlparse(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = PATH.fullmatch(url.path)
        assert match is not None, self.path
        code, answer = self.api.answer(
            self.command,
            match["kind"],
            match["name"],
            url.path.endswith("/log"),
            json.loads(body) if body else None,
            parse_qs(url.query),
        )
        if code >= 400:
            answer = {"kind": "Status", "code": code, "message": answer} if answer else "404 page not found"
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve(api: Api, folder: Path) -> Iterator[Path]:
    """The API on a free port; the kubeconfig that leads there."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    configuration = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {"token": "token"}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(configuration))
    try:
        yield folder / "kubeconfig"
    finally:
        server.shutdown()
        server.server_close()
