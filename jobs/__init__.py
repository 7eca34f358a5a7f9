"""How the pipeline becomes jobs and is looked after: plan, run, status, logs, clean."""

import sys

# in words that every old Python understands: who has one shall be told, and see no traceback
if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write("error: this is Python " + sys.version.split()[0] + ", and 3.11 or newer is ")
    sys.stderr.write("needed. Run make, which finds one, or its .venv/bin/python -m jobs\n")
    sys.exit(2)
