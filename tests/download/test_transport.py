"""Certificates and logins of downloads, with real servers."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import InputError, UserError
from pipeline.core.stop import Stop
from pipeline.download.fetch import fetch
from pipeline.download.probe import probe, probe_mirrors
from pipeline.download.transport import RetryPolicy
from tests.helpers.servers import FileServer, Request, make_certificate

DATA = b"a line of text\n" * 1000
QUICK = RetryPolicy(attempts=3, base_delay=0.001, connect_timeout=2, read_timeout=2)
SELF_SIGNED = (
    r"https://127.0.0.1:\d+/file: its certificate is not trusted \(self.signed certificate\); "
    r"if your site has its own authority, set SSL_CERT_FILE to its certificate"
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/file": DATA}) as started:
        yield started


def get(folder: Path, url: str) -> bytes:
    part = folder / "part"
    fetch([url], part, sha256=None, size=None, stop=Stop(), progress=lambda *_: None, policy=QUICK)
    return part.read_bytes()


def test_untrusted_certificate_is_refused(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_certificate(tmp_path, "IP:127.0.0.1")
    server.use_tls(certificate, key)
    url = server.url + "/file"
    for ask in (lambda: get(tmp_path, url), lambda: probe(url, QUICK)):
        with pytest.raises(InputError) as caught:
            ask()
        assert re.fullmatch(SELF_SIGNED, str(caught.value))
    assert not server.requests
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert get(tmp_path, url) == DATA


def test_a_certificate_of_another_host_is_refused(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_certificate(tmp_path, "DNS:example.org")
    server.use_tls(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(InputError, match=r"/file: its certificate is not trusted .*mismatch"):
        get(tmp_path, server.url + "/file")


def test_certificates_that_cannot_be_read_are_told(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("missing.pem", "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with pytest.raises(UserError, match=rf"no certificates can be read from .*{name}"):
            get(tmp_path, server.url + "/file")
        (tmp_path / "empty.pem").touch()


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


def knows(request: Request) -> bool:
    return request.headers.get("authorization") == basic("me:s3cret")


def netrc(folder: Path, host: str, mode: int = 0o600) -> Path:
    path = folder / ".netrc"
    path.write_text(f"machine {host} login me password s3cret\n")
    path.chmod(mode)
    return path


def test_a_login_comes_from_netrc(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.behavior.authorize = knows
    path = netrc(tmp_path, "127.0.0.1")
    assert get(tmp_path, server.url + "/file") == DATA
    assert probe(server.url + "/file", QUICK).size == len(DATA)
    monkeypatch.setenv("NETRC", str(path.rename(tmp_path / "elsewhere")))
    assert get(tmp_path, server.url + "/file") == DATA


@pytest.mark.parametrize("wrong", ["none", "another host", "open to all", "damaged"])
def test_a_login_that_is_missing_is_told(server: FileServer, tmp_path: Path, wrong: str) -> None:
    server.behavior.authorize = knows
    if wrong != "none":
        host = "example.org" if wrong == "another host" else "127.0.0.1"
        path = netrc(tmp_path, host, 0o644 if wrong == "open to all" else 0o600)
        if wrong == "damaged":
            path.write_text("machine 127.0.0.1 login me passwort s3cret\n")
    url = server.url + "/file"
    with pytest.raises(InputError) as caught:
        probe_mirrors([url, url], QUICK)
    assert (
        str(caught.value).count(
            "/file: status 401 Unauthorized, not available "
            "(is there a login for that host in ~/.netrc, mode 600?)"
        )
        == 2
    )
    assert "s3cret" not in str(caught.value)


def test_a_login_does_not_go_to_the_host_that_a_server_points_to(
    server: FileServer, tmp_path: Path
) -> None:
    netrc(tmp_path, "localhost")
    with FileServer() as first:
        first.redirects["/file"] = server.url + "/file"
        first.behavior.authorize = knows
        assert get(tmp_path, first.url.replace("127.0.0.1", "localhost") + "/file") == DATA
        assert first.requests[0].headers["authorization"] == basic("me:s3cret")
    assert "authorization" not in server.requests[0].headers
