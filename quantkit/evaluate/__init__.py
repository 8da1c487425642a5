"""What an engine is worth: accuracy, latency, and whether a difference is more than chance."""
