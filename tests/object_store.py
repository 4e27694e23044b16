"""A real S3 server with access control for tests: OpenStack Swift with its s3api, in four processes.

    with ObjectStore(tmp_path) as store:
        os.environ |= store.environment(WRITER)        # what boto3, DVC and MLflow read
        store.stop(); store.start()                    # the same data, the server away for a while
    store.let_write(False)                         # WRITER has no right any more, until it is given back

In a container (tests/slow/compose):  python -m tests.object_store FOLDER PORT

`WRITER` may do everything, `READER` is known and may do nothing, and every other key is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).absolute().parents[1]
LOCK = ROOT / "requirements" / "object-store.txt"
ENVIRONMENT = ROOT / ".venv" / "object-store"
MARK = ENVIRONMENT / ".lock-digest"
START_S = 120
BUCKET = "cslm"
SERVERS = ("account", "container", "object")


class Keys(NamedTuple):
    """Who asks, as S3 knows it."""

    access: str
    secret: str


WRITER = Keys("test:writer", "writers-secret")
READER = Keys("test:reader", "readers-secret")
STRANGER = Keys("test:writer", "guessed-secret")

SERVER = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

FILTERS = "catch_errors gatekeeper listing_formats bulk s3api tempauth copy slo dlo versioned_writes"
PROXY = f"""\
[DEFAULT]
bind_ip = {{listens}}
bind_port = {{port}}
workers = 0
swift_dir = {{folder}}
{{tls}}
[pipeline:main]
pipeline = {FILTERS} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_{WRITER.access.replace(":", "_")} = {WRITER.secret} {{right}}
user_{READER.access.replace(":", "_")} = {READER.secret}
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
"""


class ObjectStore:
    """The server and its data in a folder; a bucket named `cslm` is there from the start."""

    def __init__(self, folder: Path, port: int | None = None, tls: bool = False) -> None:
        """At a free port of 127.0.0.1, or at `port` of every address; with `tls`, by https alone."""
        self._folder = folder
        self.authority = _make_authority(folder) if tls else None
        self._ports = dict(zip(("proxy", *SERVERS), _free_ports(4), strict=True))
        self._listens = "127.0.0.1"
        if port is not None:
            self._ports["proxy"], self._listens = port, "0.0.0.0"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._configure()

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self._ports['proxy']}"

    def environment(self, keys: Keys) -> dict[str, str]:
        """What tells an S3 client where the server is and who asks."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": keys.access,
            "AWS_SECRET_ACCESS_KEY": keys.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self, keys: Keys) -> Any:
        """boto3's client, which needs nothing of the environment."""
        import boto3  # not in the container of tests/slow/compose

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=keys.access,
            aws_secret_access_key=keys.secret,
            region_name="us-east-1",
            verify=str(self.authority) if self.authority else None,
        )

    def holds(self, content: bytes) -> bool:
        """Whether DVC has brought a file with this content to the bucket."""
        listed = self.client(WRITER).list_objects_v2(Bucket=BUCKET).get("Contents", [])
        digest = hashlib.md5(content).hexdigest()
        return any(each["Key"].replace("/", "").endswith(digest) for each in listed)

    def __enter__(self) -> ObjectStore:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all servers and wait until they answer."""
        self._start(list(self._ports))

    def stop(self) -> None:
        """End all servers at once, as a machine that loses power does; the data stays."""
        self._end(list(self._processes))

    def let_write(self, may: bool) -> None:
        """Take WRITER's right away, or give it back; nobody is answered for a moment."""
        self._end(["proxy"])
        self._configure_proxy(".admin" if may else "")
        self._start(["proxy"])

    def _start(self, names: list[str]) -> None:
        for name in names:
            with (self._folder / f"{name}.log").open("ab") as log:
                command = [str(_bin(f"swift-{name}-server")), str(self._folder / f"{name}-server.conf")]
                self._processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        for name in names:
            with socket.socket() as probe:
                while probe.connect_ex(("127.0.0.1", self._ports[name])):
                    assert time.monotonic() < deadline, (self._folder / f"{name}.log").read_text()
                    time.sleep(0.1)

    def _end(self, names: list[str]) -> None:
        for name in names:
            process = self._processes.pop(name)
            process.kill()
            process.wait()

    def _configure(self) -> None:
        install()
        (self._folder / "devices" / "d1").mkdir(parents=True)
        (self._folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = cslm\n[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        for name in SERVERS:
            builder = self._folder / f"{name}.builder"
            device = f"r1z1-127.0.0.1:{self._ports[name]}/d1"
            for step in (["create", "4", "1", "0"], ["add", device, "1"], ["rebalance"]):
                subprocess.run(
                    [_bin("swift-ring-builder"), builder, *step], check=True, stdout=subprocess.DEVNULL
                )
            text = SERVER.format(name=name, port=self._ports[name], folder=self._folder)
            (self._folder / f"{name}-server.conf").write_text(text)
        self._configure_proxy(".admin")

    def _configure_proxy(self, right: str) -> None:
        where = {"listens": self._listens, "port": self._ports["proxy"], "folder": self._folder}
        tls = f"cert_file = {self.authority}\nkey_file = {_key_of(self.authority)}" if self.authority else ""
        (self._folder / "proxy-server.conf").write_text(PROXY.format(right=right, tls=tls, **where))


def _make_authority(folder: Path) -> Path:
    """A certificate of the server that nobody knows but who is given this file; its key lies beside it."""
    certificate = folder / "authority.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -out {certificate} -keyout {_key_of(certificate)}"
    )
    name = ["-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *name], check=True, capture_output=True)
    return certificate


def _key_of(certificate: Path) -> Path:
    return certificate.with_suffix(".key")


def install() -> None:
    """An environment for the server: it shares no package with those of the project."""
    if _installed():
        return
    with ENVIRONMENT.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that test may come here at once
        if not _installed():
            _install()


def _installed() -> bool:
    return MARK.exists() and MARK.read_text() == _digest()


def _digest() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def _install() -> None:
    uv = ROOT / ".venv" / "orchestrator" / "bin" / "uv"
    environment = {"UV_CACHE_DIR": str(ROOT / "var" / "cache" / "uv"), **os.environ}  # not in the user's home
    for command in (
        ["venv", "--clear", "--python", sys.executable, ENVIRONMENT],
        ["pip", "install", "--python", _bin("python"), "-r", LOCK],
    ):
        subprocess.run([uv, *command, "--quiet"], env=environment, check=True)
    MARK.write_text(_digest())


def _bin(name: str) -> Path:
    return ENVIRONMENT / "bin" / name


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def main() -> None:
    """Serve until it is ended; what it had before is not taken up again."""
    with ObjectStore(Path(tempfile.mkdtemp(dir=sys.argv[1])), int(sys.argv[2])) as store:
        print(f"serving at {store.url}", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        signal.pause()


if __name__ == "__main__":
    main()
