"""Which parts of a network may run in INT8: what each costs and wins, and the plan that follows."""
