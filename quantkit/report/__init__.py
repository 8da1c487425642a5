"""What a run leaves behind: the record, and the terminal's tables."""
