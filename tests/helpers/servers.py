"""Real HTTP servers on the loopback: a file server that can misbehave, and a hub.

`FileServer` serves bytes with ranges, ETags and conditions as in RFC 9110, except where its
`behavior` differs. `HubServer` serves folders as model and data set repos to `huggingface_hub` and
`datasets`. Both record every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import select
import socket
import ssl
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".gz", ".parquet")


@dataclass
class Request:
    """A request that was received; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    query: str = ""


@dataclass
class Behavior:
    """How a file server behaves; by default, correctly.

    `first_statuses`: sent as the first responses, each (status, headers). `cut_after_bytes`: bytes
    of a body after which the connection is closed, the first `cut_count` times. `range_shift`:
    added to the start of a range. `block_bytes`, `block_pause_s`: a body is sent in such blocks
    with such pauses. `head_pause_s`: the head is sent byte by byte with such pauses.
    `ignore_if_range`: serve ranges without checking If-Range. `on_request`: called with each
    request. `authorize`: whether a request is answered, or refused with 401.
    """

    supports_ranges: bool = True
    etag: str | None = '"one"'
    last_modified: str | None = None
    content_type: str = "application/octet-stream"
    encoding: str | None = None
    send_length: bool = True
    refuse_ranged_get: bool = False
    cut_after_bytes: int | None = None
    cut_count: int = 1_000_000
    range_shift: int = 0
    block_bytes: int = 4096
    block_pause_s: float = 0.0
    head_pause_s: float = 0.0
    ignore_if_range: bool = False
    first_statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    on_request: Callable[[Request], None] = lambda request: None
    authorize: Callable[[Request], bool] = lambda request: True


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Ignore clients that disconnect."""


class Listener:
    """Serves on a free port of the loopback within a `with` block."""

    def __init__(self, server: TCPServer, scheme: str) -> None:
        server.daemon_threads = True
        self._tcp = server
        self.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"

    def __enter__(self) -> Any:
        serve = self._tcp.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._tcp.shutdown()
        self._tcp.server_close()


class Server(Listener, ABC):
    """A threaded HTTP server on a free port of the loopback within a `with` block."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                headers = {k.lower(): v for k, v in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", 0)))
                request = Request(self.command, unquote(parts.path), headers, parts.query)
                server.requests.append(request)
                try:
                    server.answer(self, request, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_POST = do_GET  # noqa: N815

        super().__init__(_QuietServer(("127.0.0.1", 0), Handler), "http")

    def use_tls(self, certificate: Path, key: Path) -> None:
        """Serve over TLS from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._tcp.socket = context.wrap_socket(self._tcp.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")

    def ranges(self) -> list[str | None]:
        """The Range header of each GET so far."""
        return [r.headers.get("range") for r in self.requests if r.method == "GET"]

    @abstractmethod
    def answer(self, handler: Any, request: Request, body: bytes) -> None:
        """Answer one request."""


def send(handler: Any, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    """Send a complete response; for HEAD without the body, but with its length."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def send_slowly(handler: Any, data: bytes, pause: float) -> None:
    """Send bytes one by one with pauses of `pause` seconds."""
    for at in range(len(data)):
        handler.wfile.write(data[at : at + 1])
        handler.wfile.flush()
        time.sleep(pause)


class Proxy(Server):
    """An HTTP proxy that maps hosts to servers: `hosts` is name → URL."""

    def __init__(self, hosts: dict[str, str]) -> None:
        super().__init__()
        self.hosts = hosts

    def answer(self, handler: Any, request: Request, body: bytes) -> None:
        asked = urlsplit(handler.path)
        target = urlsplit(self.hosts[asked.hostname or ""])
        onward = HTTPConnection(target.hostname or "", target.port or 80, timeout=10)
        kept = ("range", "if-range", "accept-encoding")
        headers = {name: value for name, value in request.headers.items() if name in kept}
        with contextlib.closing(onward):
            onward.request(request.method, asked.path, headers=headers)
            answer = onward.getresponse()
            send(handler, answer.status, dict(answer.getheaders()), answer.read())


class Socks(Listener):
    """A SOCKS5 proxy that sends every connection to one server."""

    def __init__(self, server: Server) -> None:
        target = urlsplit(server.url)
        self.hosts: list[str] = []
        socks = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                self.rfile.read(1)
                self.rfile.read(self.rfile.read(1)[0])
                self.wfile.write(b"\5\0")
                self.rfile.read(4)
                socks.hosts.append(self.rfile.read(self.rfile.read(1)[0]).decode())
                self.rfile.read(2)
                self.wfile.write(b"\5\0\0\1" + bytes(6))
                with socket.create_connection((target.hostname, target.port)) as onward:
                    ends = {self.connection: onward, onward: self.connection}
                    while ready := select.select(ends, [], [], 10)[0]:
                        for end in ready:
                            if not (data := end.recv(65536)):
                                return
                            ends[end].sendall(data)

        super().__init__(ThreadingTCPServer(("127.0.0.1", 0), Handler), "socks5")


class FileServer(Server):
    """Serves `files` (path → bytes) with its `behavior`, and `redirects` (path → URL)."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__()
        self.files = files or {}
        self.redirects: dict[str, str] = {}
        self.behavior = Behavior()

    def answer(self, handler: Any, request: Request, body: bytes) -> None:
        behavior = self.behavior
        behavior.on_request(request)
        if behavior.head_pause_s:
            return send_slowly(
                handler, b"HTTP/1.1 200 OK\r\nX-Pad: " + b"x" * 10_000, behavior.head_pause_s
            )
        if request.path in self.redirects:
            return send(handler, 302, {"Location": self.redirects[request.path]})
        if not behavior.authorize(request):
            return send(handler, 401, {"WWW-Authenticate": "Basic"})
        if behavior.first_statuses:
            status, headers = behavior.first_statuses.pop(0)
            return send(handler, status, headers, b"not now")
        if request.path not in self.files:
            return send(handler, 404, {"Content-Type": "text/html"}, b"<html>no such file</html>")
        if behavior.refuse_ranged_get and "range" in request.headers:
            return send(handler, 405, {})
        content = self.files[request.path]
        start = self._start(request, len(content))
        if start is not None and start >= len(content):
            return send(handler, 416, {"Content-Range": f"bytes */{len(content)}"})
        return self._send(handler, content, start)

    def _start(self, request: Request, size: int) -> int | None:
        """The first byte of the range to serve; None for the whole file."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not self.behavior.supports_ranges or asked is None:
            return None
        condition = request.headers.get("if-range")
        if condition and not self.behavior.ignore_if_range:
            strong = self.behavior.etag and not self.behavior.etag.startswith("W/")
            if condition not in ({self.behavior.etag} if strong else set()) | {
                self.behavior.last_modified
            }:
                return None
        return int(asked[1])

    def _send(self, handler: Any, content: bytes, start: int | None) -> None:
        behavior = self.behavior
        headers = {"Content-Type": behavior.content_type}
        named = {"ETag": behavior.etag, "Last-Modified": behavior.last_modified}
        headers |= {k: v for k, v in named.items() if v}
        if behavior.encoding:
            headers["Content-Encoding"] = behavior.encoding
        if start is not None:
            start = max(0, start + behavior.range_shift)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start or 0 :]
        handler.send_response(200 if start is None else 206)
        if behavior.send_length:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Connection"] = "close"
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if (
            behavior.cut_after_bytes is not None
            and behavior.cut_count > 0
            and len(body) > behavior.cut_after_bytes
        ):
            behavior.cut_count -= 1
            body = body[: behavior.cut_after_bytes]
            handler.close_connection = True
        if not behavior.send_length:
            handler.close_connection = True
        for at in range(0, len(body), behavior.block_bytes):
            handler.wfile.write(body[at : at + behavior.block_bytes])
            time.sleep(behavior.block_pause_s)
        handler.wfile.flush()


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Create a self-signed certificate for a name, such as `IP:127.0.0.1`, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    words = ["-subj", "/CN=test", "-addext", f"subjectAltName={name}"]
    subprocess.run(
        [*command.split(), *words, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return certificate, key


class HubServer(Server):
    """A hub with one commit per repo.

    Args:
        models: Repo id → folder of its files; `datasets` likewise.
        refusals: Repo id → (status, X-Error-Code) sent for every request for it.

    `extra_files`: names that are listed, too, without a file. `damaged_head`: replaces the first
    bytes of LFS files, but does not change the hash that is listed.
    """

    def __init__(
        self,
        models: dict[str, Path] | None = None,
        datasets: dict[str, Path] | None = None,
        refusals: dict[str, tuple[int, str]] | None = None,
    ) -> None:
        super().__init__()
        self.repos = {"models": models or {}, "datasets": datasets or {}}
        self.refusals = refusals or {}
        self.commit = "c0ffee" * 6 + "c0ff"
        self.extra_files: list[str] = []
        self.damaged_head = b""

    def answer(self, handler: Any, request: Request, body: bytes) -> None:
        api = re.match(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+))?(.*)", request.path
        )
        raw = re.match(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path)
        repo_type, repo = (
            (api[1], api[2]) if api else (raw[1] or "models", raw[2]) if raw else ("", "")
        )
        if repo in self.refusals:
            status, code = self.refusals[repo]
            return send(handler, status, {"X-Error-Code": code, "X-Error-Message": "no"})
        folder = self.repos.get(repo_type, {}).get(repo)
        if folder is None:
            return send(handler, 404, {"X-Error-Code": "RepoNotFound"})
        revision = api[4] if api else raw[3] if raw else None
        if revision not in (None, "main", self.commit):
            return send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        if raw:
            return self._file(handler, request, folder / raw[4])
        assert api
        if api[3] == "tree":
            return self._json(handler, self._tree(folder, api[5].strip("/")))
        if api[3] == "paths-info":
            asked = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else parse_qs(body.decode())["paths"]
            )
            return self._json(handler, [e for e in self._tree(folder, "") if e["path"] in asked])
        return self._json(handler, self._info(repo_type, repo, folder))

    def _json(self, handler: Any, value: Any) -> None:
        send(handler, 200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _info(self, repo_type: str, repo: str, folder: Path) -> dict[str, Any]:
        files = [e for e in self._tree(folder, "") if e["type"] == "file"]
        siblings = [
            {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
            | ({"lfs": e["lfs"]} if "lfs" in e else {})
            for e in files
        ]
        siblings += [
            {"rfilename": name, "size": 1, "blobId": "0" * 40} for name in self.extra_files
        ]
        return {"id": repo, "sha": self.commit, "private": False, "siblings": siblings, "tags": []}

    def _tree(self, folder: Path, under: str) -> list[dict[str, Any]]:
        """All entries of a repo, recursively; weights and data are LFS files, as on the hub."""
        entries: list[dict[str, Any]] = []
        for path in sorted((folder / under).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
                continue
            data = path.read_bytes()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if path.suffix in LFS_SUFFIXES:
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {
                    "oid": digest,
                    "sha256": digest,
                    "size": len(data),
                    "pointerSize": 130,
                }
            entries.append(entry)
        return entries

    def _file(self, handler: Any, request: Request, path: Path) -> None:
        if not path.is_file():
            return send(handler, 404, {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        if path.suffix in LFS_SUFFIXES:
            data = self.damaged_head + data[len(self.damaged_head) :]
        etag = '"' + hashlib.sha256(data).hexdigest() + '"'
        headers = {"ETag": etag, "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return send(handler, 200, headers, data)
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return send(handler, 206, headers, data[start : end + 1])
