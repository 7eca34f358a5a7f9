"""Models: loading, attention, loss, scoring of documents, generation."""
