"""The download stage: the corpus as it is published, and the base model."""
