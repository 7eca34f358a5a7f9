"""The code that travels with a plan: a copy of the packages in the run's folder.

Jobs that wait for days run the code that was submitted, even if the working tree has changed. A
snapshot is named after its content, appears with one rename, and is shared by the plans of a run.
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


def source_folder() -> Path:
    """The folder of the code that is running."""
    return Path(__file__).resolve().parents[2]


def take(run: Path) -> Path:
    """Copy the running code into a run's folder, unless that copy exists.

    Returns:
        The folder to put first on PYTHONPATH.

    Raises:
        UserError: PYTHONPATH cannot contain the folder's path.
    """
    if os.pathsep in str(run):
        what = f"{str(run)!r} contains {os.pathsep!r}, which separates folders in PYTHONPATH"
        raise UserError(what, "choose another RUNS or NAME")
    source = source_folder()
    files = sorted(
        path
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    content = {path.relative_to(source).as_posix(): hash_file(path) for path in files}
    final = run / "code" / hash_json(content)[:12]
    if final.is_dir():
        return final
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        with naming(final):
            for path in files:  # without their modes: the run's folder decides who may read
                target = temporary / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        write_text(temporary / provenance.VERSION_FILE, provenance.code_version())
        os.rename(temporary, final)
    except OSError:
        if not final.is_dir():  # another process has created the same snapshot
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def record_changes(run: Path) -> str:
    """Save the uncommitted changes of the working tree, for work done by hand.

    Returns:
        The version of the code, as it is written into receipts.
    """
    version, changes = provenance.code_version(), provenance.changes()
    if changes:
        path = run / "code" / f"{version}.diff"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_text(path, redact(changes) + "\n")
    return version


def python_path(code: str) -> str:
    """PYTHONPATH with the folder `code` first."""
    return os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])
