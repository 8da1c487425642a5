"""What an engine is worth: the task's metrics, and its latency."""
