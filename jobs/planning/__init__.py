"""What a run still has to do, which jobs do it already, and whether it can be done here."""
