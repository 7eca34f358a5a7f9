"""The command line: `python -m jobs COMMAND`. `make` calls it; so may you.

Exit codes: 0 done, 2 your mistake, 3 an input is missing or damaged, 75 interrupted with progress
safe, 1 a defect of ours.

Nothing but Python itself is imported before `main` runs: a package that is not there is told, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jobs.core.console import complain, settle
from pipeline.core.error_translation import explain
from pipeline.core.errors import Failure, Interrupted


def main() -> None:
    """Run the command; a failure becomes one line and an exit code."""
    try:
        from jobs.cli.commands import app

        app(standalone_mode=False)
    except Failure as error:
        _end(f"error: {error}", error.exit_code)
    except (Interrupted, KeyboardInterrupt) as error:
        why = f" ({error})" if str(error) else ""
        what = f"interrupted{why}: progress is safe; run the same command to go on"
        _end(what, Interrupted.exit_code)
    except Exception as error:
        if fault := explain(error, Path()):
            _end(f"error: {fault}", fault.exit_code)
        if not hasattr(error, "format_message"):  # typer's: a mistake in the options
            raise
        _end(f"error: {error.format_message()} See python -m jobs --help", 2)


def _end(what: str, code: int) -> None:
    complain(what)
    settle()
    sys.exit(code)


if __name__ == "__main__":
    main()
