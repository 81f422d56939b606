"""A model hub on the loopback: the endpoints that huggingface_hub calls to push and to load a model, with real bytes behind.

Which they are was read off the requests of huggingface_hub 0.36 and 2.4. A repository's history is a list of commits, each a
mapping of paths to contents; large files go through Git LFS, by the batch API and a PUT.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"
LFS_SUFFIXES = (".onnx", ".onnx_data", ".data", ".safetensors", ".bin")


@dataclass
class Repository:
    """A model on the hub."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    card_data: dict[str, object] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, changes: dict[str, bytes], message: str = "") -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        commit = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        self.messages.append(message)
        return commit

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


class FakeHub(ThreadingHTTPServer):
    """The service, its repositories, and what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """Git LFS objects by their sha256."""
        self.requests: list[str] = []
        """Method and path of each."""
        self.user_agents: set[str] = set()
        self.status: int | None = None
        """Answered to everything, where set."""
        self.refused: dict[str, int] = {}
        """Statuses of requests that begin so, by method and path."""
        self.stall: str | None = None
        """The path of a file whose download stops in the middle."""
        self.stalled, self.released = Event(), Event()
        self.ranges: list[str] = []
        """``Range`` headers of downloads."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """Where large files are, which is another host on the real hub: no token is sent there."""
        return f"http://localhost:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **options: bool) -> Repository:
        """Put a repository there without a request."""
        repository = self.repositories[name] = Repository(**options)
        repository.commit("main", files)
        return repository

    def asked(self, method: str = "") -> list[str]:
        """Requests since the last time this was asked."""
        found = [request for request in self.requests if request.startswith(method)]
        self.requests.clear()
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeHub

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        server, url = self.server, urlsplit(self.path)
        path = unquote(url.path)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        self.body = self._read_chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.requests.append(f"{self.command} {path}")
        server.user_agents.add(self.headers.get("User-Agent", ""))
        if server.status is not None:
            self._refuse(server.status)
            return
        for beginning, status in server.refused.items():
            if f"{self.command} {path}".startswith(beginning):
                self._refuse(status)
                return
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, method)(*match.groups(), **{name: values[0] for name, values in parse_qs(url.query).items()})
                return
        self._refuse(404)

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _repository(self, name: str, *, write: bool = False, content: bool = False) -> Repository | None:
        """A repository that this request may see; otherwise it has been answered."""
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not allowed):
            self._refuse(404 if allowed else 401, "RepoNotFound")
            return None
        if repository.gated and content and not allowed:
            self._refuse(401, "GatedRepo")
            return None
        if write and not allowed:
            self._refuse(403 if "Authorization" in self.headers else 401)
            return None
        return repository

    def _create(self) -> None:
        request = json.loads(self.body)
        name = "/".join(filter(None, (request.get("organization"), request["name"])))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401)
        elif name in self.server.repositories:
            self._answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        else:
            private = request.get("private") or request.get("visibility") == "private"
            self.server.add(name, {".gitattributes": b"*.onnx filter=lfs\n"}, private=bool(private))
            self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def _info(self, name: str, revision: str | None = None, **_: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        if (commit := repository.find(revision or "main")) is None:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        facts = {"private": repository.private, "gated": False, "cardData": repository.card_data, "siblings": siblings}
        self._answer({"_id": "1", "id": name, "modelId": name, "sha": commit, "tags": [], **facts})

    def _tree(self, name: str, revision: str, folder: str | None = None, **_: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        files = repository.commits[repository.find(revision) or ""].items()
        if folder and not any(path.startswith(f"{folder}/") for path, _ in files):
            self._refuse(404, "EntryNotFound")
            return
        self._answer([{"type": "file", "path": path, "size": len(content), "oid": "0" * 40} for path, content in files])

    def _branch(self, name: str, branch: str) -> None:
        if (repository := self._repository(name, write=True)) is None:
            return
        if branch in repository.branches:
            self._answer({"error": "exists"}, 409)
            return
        repository.branches[branch] = repository.branches["main"]
        self._answer({})

    def _preupload(self, name: str, *_: str, **__: str) -> None:
        if self._repository(name, write=True) is None:
            return
        asked = json.loads(self.body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
            }
            for file in asked
        ]
        self._answer({"files": modes})

    def _validate(self) -> None:
        self._answer({"errors": [], "warnings": []})

    def _batch(self, name: str) -> None:
        if self._repository(name, write=True) is None:
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{wanted['oid']}", "header": {}}
            actions = {} if wanted["oid"] in self.server.objects else {"actions": {"upload": upload}}
            objects.append({"oid": wanted["oid"], "size": wanted["size"], **actions})
        self._answer({"transfer": "basic", "objects": objects})

    def _put(self, digest: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.server.objects[digest] = self.body
        self._answer({})

    def _commit(self, name: str, revision: str, create_pr: str = "0", **_: str) -> None:
        if (repository := self._repository(name, write=True)) is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        message, changes = "", {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.server.objects[value["oid"]]
        target = "refs/pr/1" if create_pr == "1" else revision
        repository.branches.setdefault(target, repository.branches[revision])
        commit = repository.commit(target, changes, message)
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"}
        if create_pr == "1":
            answer["pullRequestUrl"] = f"{self.server.url}/{name}/discussions/1"
        self._answer(answer)

    def _resolve(self, name: str, rest: str, **_: str) -> None:
        if (repository := self._repository(name, content=True)) is None:
            return
        revisions = [revision for revision in (*repository.branches, *repository.commits) if rest.startswith(f"{revision}/")]
        if not revisions:
            self._refuse(404, "RevisionNotFound")
            return
        revision = max(revisions, key=len)
        commit, path = repository.find(revision) or "", rest.removeprefix(f"{revision}/")
        content = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._refuse(404, "EntryNotFound", headers)
        elif path.endswith(LFS_SUFFIXES):
            digest = hashlib.sha256(content).hexdigest()
            self.server.objects[digest] = content
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": f'"{digest}"'}
            self._answer({}, 302, {**headers, **linked, "Location": f"{self.server.cdn_url}/lfs/{digest}"})
        else:
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._send(content, path, {**headers, "ETag": f'"{digest}"'})

    def _object(self, digest: str) -> None:
        self._send(self.server.objects[digest], digest, {"ETag": f'"{digest}"'})

    def _send(self, content: bytes, path: str, headers: dict[str, str]) -> None:
        status, whole = 200, len(content)
        if (asked := self.headers.get("Range")) is not None:
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            content, status = content[start:], 206
            headers = {**headers, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.stall == path and self.command == "GET":
            self.wfile.write(content[: whole // 2])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.released.wait(30)
            self.close_connection = True
            return
        self.wfile.write(content)

    def _refuse(self, status: int, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        errors = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._answer({"error": code or "told to"}, status, {**(headers or {}), **errors})

    def _answer(self, document: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has there
        pass


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    (r"POST /api/repos/create", "_create"),
    (r"POST /api/validate-yaml", "_validate"),
    (rf"GET /api/models/{_NAME}", "_info"),
    (rf"GET /api/models/{_NAME}/revision/(.+)", "_info"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)(?:/(.*))?", "_tree"),
    (rf"POST /api/models/{_NAME}/branch/(.+)", "_branch"),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", "_preupload"),
    (rf"POST /api/models/{_NAME}/commit/(.+)", "_commit"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "_batch"),
    (r"PUT /lfs/(\w+)", "_put"),
    (r"GET /lfs/(\w+)", "_object"),
    (r"HEAD /lfs/(\w+)", "_object"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/(.+)", "_resolve"),
)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running one."""
    server = FakeHub()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def publish(hub: FakeHub, bundle: Path, name: str = "org/name", **options: bool) -> Repository:
    """Put a bundle's files into a repository, as they are and without a request."""
    return hub.add(name, files_of(bundle), **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
