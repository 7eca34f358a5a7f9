"""Evaluate."""

from pipeline.settings import Section


class EvaluateConfig(Section):
    """placeholder until written"""


STEPS = ()
