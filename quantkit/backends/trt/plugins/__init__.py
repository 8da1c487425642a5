"""Kernels of our own for BERT's encoder, as TensorRT plugins: built with nvcc for the GPU at hand.

What is where:

    cuda/          CUDA C++: linear, attention, norm (kernels), plugins (TensorRT's side), interface (C)
    compiler       nvcc and TensorRT's headers: finding them, building, keeping what was built
    library        the built library: registered with TensorRT, and its kernels called directly
    tuning         which tile shape of a linear layer is fastest here
    definition     BERT from our plugins alone
    choice         which parts a network is made of, ours or TensorRT's
    mixed, layers  BERT with TensorRT's linear layers or attention plugin
    attention      weights as TensorRT's attention plugin wants them
    fields         a plugin in a network
    packing        sentences packed without padding
"""
