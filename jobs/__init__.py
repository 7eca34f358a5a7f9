"""Turn the pipeline into jobs and monitor them: plan, submit, status, logs, clean."""

import sys

# In syntax that every old Python can read, so that its users get one line and no traceback.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write("error: this is Python " + sys.version.split()[0] + ", and 3.11 or newer is ")
    sys.stderr.write("needed. Run make, which finds one, or its .venv/bin/python -m jobs\n")
    sys.exit(2)
