"""Options and output that several commands share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Start even if there is too little space.")]

PIPE_COLUMNS = 200


def make_console() -> Console:
    """Where tables and progress bars go; wide enough for a table when piped into a file."""
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(highlight=False, soft_wrap=True, width=width)
