"""Data sets: GLUE tasks, files of the user's own, the demo; sampled, tokenized and cut into batches."""
