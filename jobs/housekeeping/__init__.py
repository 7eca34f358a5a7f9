"""Cancel jobs, remove what is not needed, export a trained model."""
