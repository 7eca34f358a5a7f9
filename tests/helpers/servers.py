"""Real HTTP servers on the loopback: files with moods, and a hub.

`FileServer` serves bytes with ranges, ETags and conditions as RFC 9110 wants them, until its
`mood` says otherwise. `HubServer` imitates what `huggingface_hub` and `datasets` ask of a hub, for
folders of files given as model and data set repos. Both record every request.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".gz", ".parquet")


@dataclass
class Request:
    """One request as it came in; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    query: str = ""


@dataclass
class Mood:
    """How a file server misbehaves; the default is well.

    `statuses`: answered first, in turn, each as (status, headers). `cut`: bytes of a body after
    which the connection breaks, the first `cuts` times. `shift`: added to the start of a range.
    `block`, `pause`: bytes of a body that are sent at once, seconds before the next ones.
    `head_pause`: seconds before each byte of the head.
    `careless`: ranges are served without a look at If-Range. `before`: called with each request.
    `lets_in`: whether a request is answered at all, or with 401.
    """

    ranges: bool = True
    etag: str | None = '"one"'
    modified: str | None = None
    kind: str = "application/octet-stream"
    encoding: str | None = None
    length: bool = True
    head_only: bool = False
    cut: int | None = None
    cuts: int = 1_000_000
    shift: int = 0
    block: int = 4096
    pause: float = 0.0
    head_pause: float = 0.0
    careless: bool = False
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    before: Callable[[Request], None] = lambda request: None
    lets_in: Callable[[Request], bool] = lambda request: True


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """A client that goes away is no news."""


class Listener:
    """Serves on a free port of the loopback, for the length of a `with`."""

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


class Server(Listener):
    """A threaded server on a free port of the loopback, for the length of a `with`."""

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

        super().__init__(_Quiet(("127.0.0.1", 0), Handler), "http")

    def encrypt(self, certificate: Path, key: Path) -> None:
        """Serve over TLS from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._tcp.socket = context.wrap_socket(self._tcp.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")

    def ranges(self) -> list[str | None]:
        """The Range header of each GET so far."""
        return [r.headers.get("range") for r in self.requests if r.method == "GET"]

    def answer(self, handler: Any, request: Request, body: bytes) -> None:
        """Answer one request."""
        raise NotImplementedError


def send(handler: Any, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    """A whole response; no body for HEAD, where the length is still said."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def drip(handler: Any, data: bytes, pause: float) -> None:
    """Send bytes one by one."""
    for at in range(len(data)):
        handler.wfile.write(data[at : at + 1])
        handler.wfile.flush()
        time.sleep(pause)


class Proxy(Server):
    """An HTTP proxy that knows its own way to the hosts in `hosts` (name → URL of a server)."""

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
    """A SOCKS5 proxy that leads every connection to one server."""

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
    """Serves `files` (path → bytes) in its `mood`, and `redirects` (path → URL)."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__()
        self.files = files or {}
        self.redirects: dict[str, str] = {}
        self.mood = Mood()

    def answer(self, handler: Any, request: Request, body: bytes) -> None:
        mood = self.mood
        mood.before(request)
        if mood.head_pause:
            return drip(handler, b"HTTP/1.1 200 OK\r\nX-Pad: " + b"x" * 10_000, mood.head_pause)
        if request.path in self.redirects:
            return send(handler, 302, {"Location": self.redirects[request.path]})
        if not mood.lets_in(request):
            return send(handler, 401, {"WWW-Authenticate": "Basic"})
        if mood.statuses:
            status, headers = mood.statuses.pop(0)
            return send(handler, status, headers, b"not now")
        if request.path not in self.files:
            return send(handler, 404, {"Content-Type": "text/html"}, b"<html>no such file</html>")
        if mood.head_only and "range" in request.headers:
            return send(handler, 405, {})
        content = self.files[request.path]
        start = self._start(request, len(content))
        if start is not None and start >= len(content):
            return send(handler, 416, {"Content-Range": f"bytes */{len(content)}"})
        return self._send(handler, content, start)

    def _start(self, request: Request, size: int) -> int | None:
        """The first byte of the range to serve; None for the whole."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not self.mood.ranges or asked is None:
            return None
        condition = request.headers.get("if-range")
        if condition and not self.mood.careless:
            strong = self.mood.etag and not self.mood.etag.startswith("W/")
            if condition not in ({self.mood.etag} if strong else set()) | {self.mood.modified}:
                return None
        return int(asked[1])

    def _send(self, handler: Any, content: bytes, start: int | None) -> None:
        mood = self.mood
        headers = {"Content-Type": mood.kind}
        named = {"ETag": mood.etag, "Last-Modified": mood.modified}
        headers |= {k: v for k, v in named.items() if v}
        if mood.encoding:
            headers["Content-Encoding"] = mood.encoding
        if start is not None:
            start = max(0, start + mood.shift)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start or 0 :]
        handler.send_response(200 if start is None else 206)
        if mood.length:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Connection"] = "close"
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if mood.cut is not None and mood.cuts > 0 and len(body) > mood.cut:
            mood.cuts -= 1
            body = body[: mood.cut]
            handler.close_connection = True
        if not mood.length:
            handler.close_connection = True
        for at in range(0, len(body), mood.block):
            handler.wfile.write(body[at : at + mood.block])
            time.sleep(mood.pause)
        handler.wfile.flush()


def certify(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for a name, such as `IP:127.0.0.1`, and its key."""
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
        refuse: Repo id → (status, X-Error-Code) to answer to every request for it.

    `also` names files that the hub says it has, too. `spoil` replaces the first bytes of LFS files,
    though not in what is said of their hash.
    """

    def __init__(
        self,
        models: dict[str, Path] | None = None,
        datasets: dict[str, Path] | None = None,
        refuse: dict[str, tuple[int, str]] | None = None,
    ) -> None:
        super().__init__()
        self.repos = {"models": models or {}, "datasets": datasets or {}}
        self.refuse = refuse or {}
        self.commit = "c0ffee" * 6 + "c0ff"
        self.also: list[str] = []
        self.spoil = b""

    def answer(self, handler: Any, request: Request, body: bytes) -> None:
        api = re.match(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+))?(.*)", request.path
        )
        raw = re.match(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path)
        kind, repo = (api[1], api[2]) if api else (raw[1] or "models", raw[2]) if raw else ("", "")
        if repo in self.refuse:
            status, code = self.refuse[repo]
            return send(handler, status, {"X-Error-Code": code, "X-Error-Message": "no"})
        folder = self.repos.get(kind, {}).get(repo)
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
        return self._json(handler, self._info(kind, repo, folder))

    def _json(self, handler: Any, value: Any) -> None:
        send(handler, 200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _info(self, kind: str, repo: str, folder: Path) -> dict[str, Any]:
        files = [e for e in self._tree(folder, "") if e["type"] == "file"]
        siblings = [
            {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
            | ({"lfs": e["lfs"]} if "lfs" in e else {})
            for e in files
        ]
        siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in self.also]
        return {"id": repo, "sha": self.commit, "private": False, "siblings": siblings, "tags": []}

    def _tree(self, folder: Path, under: str) -> list[dict[str, Any]]:
        """All entries of a repo, recursively; weights and data are in LFS, as on the hub."""
        entries: list[dict[str, Any]] = []
        for path in sorted((folder / under).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
                continue
            data = path.read_bytes()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if path.suffix in LFS:
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
        if path.suffix in LFS:
            data = self.spoil + data[len(self.spoil) :]
        etag = '"' + hashlib.sha256(data).hexdigest() + '"'
        headers = {"ETag": etag, "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return send(handler, 200, headers, data)
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return send(handler, 206, headers, data[start : end + 1])
