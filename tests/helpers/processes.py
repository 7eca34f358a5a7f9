"""`python -m jobs` as a fork of a process that has imported the large libraries already.

Importing torch, transformers and peft takes 5 to 15 seconds of CPU, and a test that runs a pipeline
starts ten such processes. `Popen` here forks them instead: a server that has imported the
libraries, and nothing of this project, forks twice, and the orphan becomes a child of the test
process, which for that moment is a subreaper. So process ids, groups, signals and exit codes are
those of any child, and its own children, the tasks of a run, are forks in turn. The code of this
project is imported again in each of them, from PYTHONPATH.

What a fork cannot show is what happens when the libraries are imported: use the marker
`interpreter` for tests about that. And its figures are blank.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import pickle
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from typing import Any

OURS = ("jobs", "pipeline")
LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "tokenizers", "fastokens", "safetensors.torch",
    "pyarrow.parquet", "pydantic", "typer", "rich.progress", "zstandard", "httpx", "yaml",
    "msgspec", "xxhash", "jinja2", "tenacity", "scipy.stats", "matplotlib.figure",
    "matplotlib.backends.backend_svg", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "transformers.models.opt.modeling_opt",
)  # fmt: skip
PR_SET_CHILD_SUBREAPER = 36
STDIN, STDOUT, STDERR = 0, 1, 2
BLANK_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000b4944415478da636000020000050001e9fadcd80000000049454e44ae426082"
)
"""One transparent pixel."""
REAL_POPEN = subprocess.Popen

Start = tuple[list[str], str, dict[str, str], bool, int, int]
"""Words after `python -m jobs`, working folder, environment, new session, process group, umask."""


class Popen(REAL_POPEN):  # type: ignore[type-arg]
    """As `subprocess.Popen`, but `python -m jobs` is a fork and everything else is not."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        (executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell,
         p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
         _, gid, gids, uid, umask, new_session, group) = rest  # fmt: skip
        words = [] if isinstance(args, str | bytes | os.PathLike) else list(map(os.fsdecode, args))
        env = dict(os.environ if env is None else env)
        unusual = executable or preexec_fn or pass_fds or shell or gid or gids or uid
        ours = words[:3] == [sys.executable, "-m", "jobs"] and "HF_ENDPOINT" not in env
        if unusual or not ours:
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        given: Start = (words[3:], str(cwd or os.getcwd()), env, new_session, group, umask)
        streams = [
            given if given != -1 else own
            for given, own in ((p2cread, STDIN), (c2pwrite, STDOUT), (errwrite, STDERR))
        ]
        self.pid = _fork(given, streams) if _in_fork else server().start(given, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


class Server:
    """The process that has imported the libraries; one for each process that runs tests."""

    def __init__(self) -> None:
        from jobs.core.environment import TASK_ENVIRONMENT, THREAD_VARIABLES

        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        # what the libraries read when they are loaded
        env = os.environ | TASK_ENVIRONMENT | dict.fromkeys(THREAD_VARIABLES, "1")
        env.pop("PYTHONPATH", None)
        with theirs:
            self._process = REAL_POPEN(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                env=env,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.close)

    def start(self, given: Start, streams: list[int]) -> int:
        """Fork; returns the id of the process, which is a child of this one."""
        message = pickle.dumps(given)
        with self._lock:
            _be_subreaper(True)
            try:
                socket.send_fds(self._socket, [len(message).to_bytes(8, "big")], streams)
                self._socket.sendall(message)
                answer = self._socket.recv(8)
            finally:
                _be_subreaper(False)
        assert answer, "the server of warm processes has ended"
        return int.from_bytes(answer, "big")

    def close(self) -> None:
        """End it; processes that it has started go on."""
        self._socket.close()
        self._process.wait()


def save_blank(figure: Any, to: Any, **options: Any) -> None:
    """Stands for `Figure.savefig`, which takes most of the time of a report."""
    if options.get("format") == "svg":
        width, height = (72 * inches for inches in figure.get_size_inches())
        size = f'width="{width}pt" height="{height}pt" viewBox="0 0 {width} {height}"'
        to.write(f'<?xml version="1.0"?>\n<svg {size} xmlns="http://www.w3.org/2000/svg"></svg>\n')
    else:
        to.write_bytes(BLANK_PNG)


_server: Server | None = None
_in_fork = False


def server() -> Server:
    """The server of this process, started if need be."""
    global _server
    if _server is None:
        _server = Server()
    return _server


def _be_subreaper(on: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _serve(connection: socket.socket) -> None:
    """Fork for each message, until the other side has closed."""
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.modules["matplotlib.figure"].Figure.savefig = save_blank  # type: ignore[attr-defined]
    while True:
        size, streams, _, _ = socket.recv_fds(connection, 8, 3)
        if not size:
            return
        message = b""
        while len(message) < int.from_bytes(size, "big"):
            message += connection.recv(1 << 20)
        reader, writer = os.pipe()
        between = os.fork()
        if not between:
            pid = _fork(pickle.loads(message), streams)
            os.write(writer, pid.to_bytes(8, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        connection.sendall(os.read(reader, 8))
        for descriptor in (reader, writer, *streams):
            os.close(descriptor)


def _fork(given: Start, streams: list[int]) -> int:
    """Run `python -m jobs` in a fork of this process; returns its id."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _run(given, streams)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _run(given: Start, streams: list[int]) -> int:
    """Run the command in the forked process; returns its exit code."""
    global _in_fork
    words, cwd, env, new_session, group, umask = given
    atexit._clear()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if new_session:
        os.setsid()
    elif group >= 0:
        os.setpgid(0, group)
    if umask >= 0:
        os.umask(umask)
    copies = [os.dup(stream) for stream in streams]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
        os.close(copy)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    _import_again(cwd, env)
    if words[:1] == ["run"] and not words[1].startswith("download"):
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True  # read from the environment when it was imported
    _in_fork = True
    subprocess.Popen = Popen  # type: ignore[misc]
    sys.argv = ["jobs", *words]
    try:
        runpy.run_module("jobs", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    threading._shutdown()
    atexit._run_exitfuncs()
    return code if isinstance(code, int) else int(code is not None)


def _import_again(cwd: str, env: dict[str, str]) -> None:
    """Forget the modules of this project and look for them where a new interpreter would."""
    for name in list(sys.modules):
        if name.partition(".")[0] in OURS:
            del sys.modules[name]
    here = os.path.dirname(os.path.abspath(__file__))
    installed = [path for path in _installed if path != here]
    first = [] if env.get("PYTHONSAFEPATH") else [cwd]
    more = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*first, *more, *installed]


_installed = list(sys.path)

if __name__ == "__main__":
    sys.modules["tests.helpers.processes"] = sys.modules["__main__"]
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        _serve(ours)
