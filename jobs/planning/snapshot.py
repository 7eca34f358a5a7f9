"""The code that travels with a plan: a copy of the packages.

So jobs that wait for days run what was submitted, however the working tree is edited. A snapshot is
a folder named by its content, put there by one rename, shared by the plans of a run.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from pipeline.core import provenance
from pipeline.core.atomic_io import naming, write_text
from pipeline.core.errors import UserError
from pipeline.core.receipt import hash_file, hash_json
from pipeline.core.redaction import redact

PACKAGES = ("pipeline", "jobs")


def source() -> Path:
    """The folder of the code that is running."""
    return Path(__file__).resolve().parents[2]


def take(run: Path) -> Path:
    """Copy the running code into a run's folder, unless it is there.

    Returns:
        The folder to put first on PYTHONPATH.

    Raises:
        UserError: PYTHONPATH cannot hold it.
    """
    if os.pathsep in str(run):
        what = f"{str(run)!r} has {os.pathsep!r} in it, at which PYTHONPATH is split"
        raise UserError(what, "choose another RUNS or NAME")
    here = source()
    files = sorted(
        path
        for package in PACKAGES
        for path in (here / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    content = {path.relative_to(here).as_posix(): hash_file(path) for path in files}
    final = run / "code" / hash_json(content)[:12]
    if final.is_dir():
        return final
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        with naming(final):
            for path in files:  # the content alone: rights are those of the run, not of the tree
                target = temporary / path.relative_to(here)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        write_text(temporary / provenance.STAMP, provenance.code_version())
        os.rename(temporary, final)
    except OSError:
        if not final.is_dir():  # somebody was quicker with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def record(run: Path) -> str:
    """Write down what the working tree has that its commit has not, for work done by hand.

    Returns:
        The version of the code, as it stands in receipts.
    """
    version, changes = provenance.code_version(), provenance.changes()
    if changes:
        path = run / "code" / f"{version}.diff"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_text(path, redact(changes) + "\n")
    return version


def python_path(code: str) -> str:
    """PYTHONPATH with the code first."""
    return os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])
