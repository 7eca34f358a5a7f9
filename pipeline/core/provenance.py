"""Where a result comes from: code, packages, machine. Nothing heavy is imported."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

SOURCE_ROOT = Path(__file__).resolve().parents[2]
VERSION_FILE = "VERSION"
RECORDED_PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors"),
    *("numpy", "pyarrow", "zstandard", "xxhash", "datasketch"),
)


def code_version() -> str:
    """The commit of the source tree, with a hash of uncommitted changes; else the version.

    Only a repository whose top is ours counts: an installed copy may be inside another one. The
    snapshot of a plan keeps it in the file `VERSION_FILE`.
    """
    version_file = SOURCE_ROOT / VERSION_FILE
    if version_file.is_file():
        return version_file.read_text(encoding="utf-8").strip()
    if (SOURCE_ROOT / ".git").exists():
        commit = _git("rev-parse", "--short=12", "HEAD")
        if commit:
            diff = changes()
            return commit + (f"+{hashlib.sha256(diff.encode()).hexdigest()[:8]}" if diff else "")
    return _version("gristmill") or "unknown"


def changes() -> str:
    """Uncommitted changes of the source tree as a diff; "" without a repository.

    Of untracked files only code is included.
    """
    if not (SOURCE_ROOT / ".git").exists():
        return ""
    diff = _git("diff", "--no-color", "--no-ext-diff", "HEAD")
    for name in _git("ls-files", "--others", "--exclude-standard", "-z").split("\0"):
        if name.endswith((".py", ".yaml")):
            diff += f"\n--- /dev/null\n+++ b/{name}\n" + (SOURCE_ROOT / name).read_text(
                errors="replace"
            )
    return diff


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, where installed."""
    versions = {name: version for name in RECORDED_PACKAGES if (version := _version(name))}
    return {"python": platform.python_version(), **versions}


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory in bytes, and GPU names if torch is loaded already.

    What is unknown is None.
    """
    gpus = None
    if torch := sys.modules.get("torch"):
        cuda = torch.cuda
        gpus = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return {"cpu": _cpu(), "cores": _cores(), "memory": _memory(), "gpus": gpus}


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.machine() or None


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            # no optional locks: a kill in the middle must not leave one in the user's repository
            ["git", "--no-optional-locks", "-C", str(SOURCE_ROOT), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
