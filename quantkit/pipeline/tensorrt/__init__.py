"""What is done with TensorRT alone: engines audited and timed by phases, its calibrators compared with ours."""
