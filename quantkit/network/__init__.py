"""BERT as a graph: config, weights, the definition, ONNX in and out, Q/DQ placement."""
