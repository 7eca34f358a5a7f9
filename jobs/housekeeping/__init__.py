"""Cancel, clean, export, and who may read what a run leaves."""
