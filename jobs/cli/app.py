"""All commands of `python -m jobs`. `jobs.__main__` turns failures into exit codes."""

from __future__ import annotations

import typer

from jobs.cli import execution, inspection, maintenance

COMMANDS = (
    *(execution.submit, execution.fetch, execution.plan, execution.run),
    *(inspection.status, inspection.logs, inspection.report, inspection.compare),
    *(maintenance.cancel, maintenance.export, maintenance.clean),
)


def build_app() -> typer.Typer:
    """The command line."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    for command in COMMANDS:
        app.command()(command)
    return app
