"""How the pipeline becomes jobs and is looked after: plan, run, status, logs, clean."""
