"""A download that is killed repeatedly: is the file correct in the end, and what does it cost?

    python bench/download.py [--mb 2000] [--kills 20] [--seed 0]

A server on the loopback sends a file of random bytes. Whenever it has sent one of `--kills`
randomly chosen positions, it kills the downloading process with SIGKILL, which is then started
again. The report counts all bytes that the server has sent.
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
BLOCK_BYTES = 1 << 16
CHILD = """
import sys
from pathlib import Path
from pipeline.download.fetch import fetch
from pipeline.core.stop import Stop
url, part, sha256 = sys.argv[1:]
fetch([url], Path(part), sha256=sha256, size=None, stop=Stop(), progress=lambda done, total: None)
"""


class KillingServer(ThreadingHTTPServer):
    """Serves one file and kills the receiving process at given positions of the file."""

    daemon_threads = True

    def __init__(self, path: Path, kill_positions: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path, self.kill_positions = path, kill_positions
        self.size = path.stat().st_size
        self.sent = 0
        self.receiver: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *args: object) -> None:
        """Ignore broken connections: killed receivers cause them."""

    def on_sent(self, position: int) -> None:
        """Kill the receiver if the file has been sent up to the next kill position."""
        if self.kill_positions and position >= self.kill_positions[0] and self.receiver:
            self.kill_positions.pop(0)
            os.kill(self.receiver.pid, signal.SIGKILL)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KillingServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        size = self.server.size
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        with self.server.path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                self.wfile.write(block)
                self.server.sent += len(block)
                self.server.on_sent(file.tell())


def main() -> None:
    """Run the download once and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    size, rng = options.mb * 1_000_000, random.Random(options.seed)
    kill_positions = sorted(rng.randrange(size) for _ in range(options.kills))
    with tempfile.TemporaryDirectory() as name:
        source, part = Path(name) / "source", Path(name) / "corpus.part"
        digest = hashlib.sha256()
        with source.open("wb") as file:
            for start in range(0, size, 1 << 20):
                block = rng.randbytes(min(1 << 20, size - start))
                digest.update(block)
                file.write(block)
        expected = digest.hexdigest()
        server = KillingServer(source, kill_positions)
        arguments = [f"http://127.0.0.1:{server.server_port}/corpus", str(part), expected]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
        started, kills, code = time.monotonic(), 0, 1
        while code:
            server.receiver = subprocess.Popen(
                [sys.executable, "-c", CHILD, *arguments], env=environment
            )
            code = server.receiver.wait()
            if code == -signal.SIGKILL:
                kills += 1
            elif code:
                sys.exit(f"the download ended with code {code}")
        seconds = time.monotonic() - started
        with part.open("rb") as file:
            correct = hashlib.file_digest(file, "sha256").hexdigest() == expected
        server.shutdown()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("| size | kills | sha256 | sent | sent / size | wall | CPU, all processes |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    print(
        f"| {size / 1e6:,.0f} MB | {kills} | {'correct' if correct else 'WRONG'} "
        f"| {server.sent / 1e6:,.0f} MB | {server.sent / size:.3f} | {seconds:.0f} s "
        f"| {usage.ru_utime + usage.ru_stime:.0f} s |"
    )
    sys.exit(not correct)


if __name__ == "__main__":
    main()
