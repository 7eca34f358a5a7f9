"""A trained model as a folder that anybody can load, with its model card."""
