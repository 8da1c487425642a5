"""TensorRT: engines built in a child process, calibrated, run through PyCUDA, and audited.

The only room that imports tensorrt or pycuda, and only when an engine is really built, loaded or run. What the version
and the GPU at hand can do stands in one table, `capabilities`; everything else asks it.

    versions, capabilities   pure: what is possible, each impossible thing a sentence
    fused                    pure: the kernels of TensorRT's own attention plugin, GPU by GPU
    runtime, cuda, graphs    the libraries, the device, buffers, CUDA graphs
    options, job             what to build, as JSON
    plugins/                 our own plugins: CUDA sources, their compiler, networks of them, packed sentences
    shares                   where the time of an encoder layer goes
    definition, network      the network API: `TrtBuilder`; networks from ONNX or from a model folder
    calibrators, ranges      TensorRT's calibrators over our batches; tables as caches or dynamic ranges
    build, worker, child     the build itself, in a process of its own
    plans                    engines on disk: hash, origin, trust
    execution, engine        the runner
    inspection, audit        what an engine really computes
    timing                   latency by phases, as trtexec reports it
    support, backend         `TensorRTBackend`, which ties them together
"""
