"""What is left to do, and whether it can be done here."""
