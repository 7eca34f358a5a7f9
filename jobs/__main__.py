"""The command line: `python -m jobs COMMAND`. `make` calls it, and so can you.

Exit codes: 0 done, 1 a bug, 2 the user's mistake, 3 an input is missing or damaged, 75 interrupted
with progress saved.

`main` imports the commands, so that a missing package ends in one line, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jobs.core.console import flush_streams, print_error
from pipeline.core.error_translation import translate
from pipeline.core.errors import Failure, Interrupted


def main() -> None:
    """Run the command; a failure becomes one line and an exit code."""
    try:
        from jobs.cli.app import build_app

        build_app()(standalone_mode=False)
    except Failure as error:
        _exit(f"error: {error}", error.exit_code)
    except (Interrupted, KeyboardInterrupt) as error:
        reason = f" ({error})" if str(error) else ""
        message = f"interrupted{reason}: progress is safe; run the same command to resume"
        _exit(message, Interrupted.exit_code)
    except Exception as error:
        if failure := translate(error, Path()):
            _exit(f"error: {failure}", failure.exit_code)
        if not hasattr(error, "format_message"):  # typer's errors about options have it
            raise
        _exit(f"error: {error.format_message()} See python -m jobs --help", 2)


def _exit(message: str, code: int) -> None:
    print_error(message)
    flush_streams()
    sys.exit(code)


if __name__ == "__main__":
    main()
