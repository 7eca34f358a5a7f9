"""A download that is killed again and again: does it end in the right bytes, and at what price?

    python bench/download.py [--mb 2000] [--kills 20] [--seed 0]

A server on the loopback sends a file of random bytes. The downloading process gets a SIGKILL each
time that one of so many places, drawn at random, has been sent to it, and is started again. What is
counted is all that the server has written to the network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 1 << 16
CHILD = """
import sys
from pathlib import Path
from pipeline.download.fetch import fetch
from pipeline.core.stop import Stop
url, part, sha256 = sys.argv[1:]
fetch([url], Path(part), sha256=sha256, size=None, stop=Stop(), progress=lambda done, total: None)
"""


class Sender(ThreadingHTTPServer):
    """Sends one file, and kills who receives it where it was told to."""

    daemon_threads = True

    def __init__(self, path: Path, places: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path, self.places = path, places
        self.size = path.stat().st_size
        self.sent = 0
        self.victim: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *args: object) -> None:
        """Who was killed has hung up; that is no news."""

    def passed(self, place: int) -> None:
        """Note that the file has been sent up to this place."""
        if self.places and place >= self.places[0] and self.victim:
            self.places.pop(0)
            os.kill(self.victim.pid, signal.SIGKILL)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Sender

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        size = self.server.size
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        with self.server.path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK):
                self.wfile.write(block)
                self.server.sent += len(block)
                self.server.passed(file.tell())


def main() -> None:
    """Run it once and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    size, chance = chosen.mb * 1_000_000, random.Random(chosen.seed)
    places = sorted(chance.randrange(size) for _ in range(chosen.kills))
    with tempfile.TemporaryDirectory() as name:
        source, part = Path(name) / "source", Path(name) / "corpus.part"
        digest = hashlib.sha256()
        with source.open("wb") as file:
            for at in range(0, size, 1 << 20):
                block = chance.randbytes(min(1 << 20, size - at))
                digest.update(block)
                file.write(block)
        wanted = digest.hexdigest()
        server = Sender(source, places)
        words = [f"http://127.0.0.1:{server.server_port}/corpus", str(part), wanted]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
        started, killed, code = time.monotonic(), 0, 1
        while code:
            server.victim = subprocess.Popen([sys.executable, "-c", CHILD, *words], env=environment)
            code = server.victim.wait()
            if code == -signal.SIGKILL:
                killed += 1
            elif code:
                sys.exit(f"the download ended with code {code}")
        seconds = time.monotonic() - started
        with part.open("rb") as file:
            right = hashlib.file_digest(file, "sha256").hexdigest() == wanted
        server.shutdown()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("| size | killed | sha256 | sent | of the size | wall | CPU of all starts |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    print(
        f"| {size / 1e6:,.0f} MB | {killed} | {'right' if right else 'WRONG'} "
        f"| {server.sent / 1e6:,.0f} MB | {server.sent / size:.3f} | {seconds:.0f} s "
        f"| {used.ru_utime + used.ru_stime:.0f} s |"
    )
    sys.exit(not right)


if __name__ == "__main__":
    main()
