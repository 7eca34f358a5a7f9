"""What a decoder may ask for: the windows of zstd --long, and the limits that memory has."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from pipeline.core import cgroup_memory as module
from pipeline.core.cgroup_memory import memory
from pipeline.sources.codecs import CompressedFile

ROOT = Path(__file__).parents[2]
TEXT = b'{"text": "the same again"}\n' * 2000
READ = """
import resource, sys
from pathlib import Path
from pipeline.sources.codecs import CompressedFile
from pipeline.core.errors import Failure
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]) << 20,) * 2)
try:
    print(sum(map(len, CompressedFile(Path(sys.argv[1])))))
except Failure as error:
    print(type(error).__name__, error)
"""


def long(text: bytes, window_log: int) -> bytes:
    """A frame as `zstd --long=N < pipe` writes it: it tells its window, and not its size."""
    settings = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=window_log, enable_ldm=window_log <= 27
    )
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = compressor.compress(text) + compressor.flush()
    told = zstandard.get_frame_parameters(data)
    assert (told.window_size, told.content_size) == (2**window_log, zstandard.CONTENTSIZE_UNKNOWN)
    return data


@pytest.mark.parametrize("window_log", [27, 31])
def test_a_long_window_is_read(tmp_path: Path, window_log: int) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstandard.compress(TEXT) + long(TEXT, window_log))
    assert b"".join(CompressedFile(path)) == TEXT * 2


def test_distant_match_in_a_long_window_is_decoded(tmp_path: Path) -> None:
    once = random.Random(1).randbytes(12_000_000)
    path = tmp_path / "x.zst"
    path.write_bytes(long(once * 2, 27))
    assert path.stat().st_size < 13_000_000, "the second half points at the first"
    assert b"".join(CompressedFile(path)) == once * 2


@pytest.mark.parametrize(
    ("window_log", "given", "told"),
    [
        (27, 1500, None),
        (31, 3000, None),
        (31, 1500, "a window of 2048 MB (zstd --long), and 1500 MB of memory are available. Give"),
        (27, 350, "a window of 128 MB (zstd --long), and 350 MB of memory are available. Give"),
    ],
)
def test_a_window_beyond_the_memory_that_is_given_is_told(
    tmp_path: Path, window_log: int, given: int, told: str | None
) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstandard.compress(TEXT) + long(TEXT, window_log))
    done = subprocess.run(
        [sys.executable, "-c", READ, path, str(given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if told is None:
        assert done.stdout == f"{2 * len(TEXT)}\n"
    else:
        assert done.stdout.startswith(f"UserError {path} was compressed with {told}")
        assert done.stdout.count("\n") == 1


def test_the_least_of_the_cgroups_around_a_process_counts(tmp_path: Path) -> None:
    def limits(table: str, files: dict[str, str]) -> list[int]:
        mount = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, value in files.items():
            path = mount / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value)
        mount.mkdir(exist_ok=True)
        (mount / "table").write_text(table)
        return sorted(module._cgroups(mount / "table", mount))

    job = "slurm/uid_1/job_7"
    two = {f"{job}/memory.max": "max\n", "slurm/uid_1/memory.max": "7000\n"}
    assert limits(f"0::/{job}\n", two | {"memory.max": "9000"}) == [7000, 9000]
    one = {f"memory/{job}/memory.limit_in_bytes": "8000\n", f"cpu/{job}/memory.max": "1"}
    assert limits(f"4:memory:/{job}\n3:cpuacct,cpu:/{job}\n0::/\n", one) == [8000]
    outside = {"memory/memory.limit_in_bytes": "6000"}
    assert limits("9:hugetlb,memory:/docker/0af\n", outside) == [6000], "in a container"
    assert limits("0::/\n", {}) == []
    assert list(module._cgroups(tmp_path / "none", tmp_path)) == []


def test_there_is_no_more_than_the_machine_has() -> None:
    pages = resource.getpagesize() * os.sysconf("SC_PHYS_PAGES")
    assert 2**27 < memory() <= pages
