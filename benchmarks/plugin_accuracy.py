"""Accuracy of networks of plugins without a GPU: plugin_accuracy.py TABLE... [--symmetric] [--linear L --attention A].

SST-2's dev rows (../shared/glue), all-MiniLM-L6-v2 with its adapter, through the network that quantkit defines, with
the plugins' arithmetic in NumPy: the tests' stand-in of TensorRT. Each TABLE is quantkit's JSON, or "fp16" for none;
`--symmetric` forgets the tables' extremes, so that everything is coded around zero. `--linear` and `--attention` name
TensorRT's own parts, computed as they are documented to (INT8 around zero). Some minutes a table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SEQ_LEN, BATCH = 64, 32


def run(network: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The network's output, layer by layer."""
    from tensorrt._compute import extras, results_of

    found = {id(tensor): feed[tensor.name] for tensor in network._inputs}
    for layer in network._layers:
        given = [found[id(t)] for t in layer._inputs]
        results = results_of(layer._kind, given, list(layer.get_output(0).shape), extras(layer))
        found |= {id(layer.get_output(i)): result for i, result in enumerate(results)}
    return found[id(network._outputs[0])]


def main() -> None:
    """Prints a line a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--linear", default="auto")
    parser.add_argument("--attention", default="auto")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests/backends/trt/fakes"))

    import tensorrt

    tensorrt.init_libnvinfer_plugins(None, "")
    from quantkit.backends.trt.capabilities import Gpu, capabilities
    from quantkit.backends.trt.network import define_plugins
    from quantkit.backends.trt.options import BuildOptions, Mix, ShapeRange, Source
    from quantkit.backends.trt.plugins.packing import pack
    from quantkit.backends.trt.versions import Version
    from quantkit.data.batches import TokenBatches
    from quantkit.data.demo import demo_model_dir
    from quantkit.data.tokenize import encode
    from quantkit.pipeline.settings import Settings
    from quantkit.pipeline.workspace import Workspace
    from quantkit.report.terminal import SilentWatcher
    from quantkit.tables.table import CalibrationTable, load_table

    model, adapter = str(demo_model_dir()), str(SHARED / "adapters" / "sst2")
    settings = Settings(model=model, adapter=adapter, task="sst2", data=str(SHARED / "glue"), seq_len=SEQ_LEN)
    workspace = Workspace(settings, SilentWatcher())
    encoded = encode(workspace.tokenizer, workspace.evaluation.texts, SEQ_LEN)
    order = np.argsort(encoded.lengths, kind="stable")  # rows of a batch are of about one length
    batches = TokenBatches(encoded.take(order), BATCH)
    labels = np.array(workspace.evaluation.labels)[order]
    for name in given.tables:
        table = None if name == "fp16" else load_table(Path(name))
        if table is not None and given.symmetric:
            plain = {n: replace(entry, minimum=None, maximum=None) for n, entry in table.entries.items()}
            table = CalibrationTable(plain)
        network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
        precision, ranges = ("int8", "dynamic_range") if table else ("fp16", "")
        mix = Mix(linear=given.linear, attention=given.attention)
        packed = mix != Mix()
        profiles = (ShapeRange((1, 1), (BATCH, SEQ_LEN), (BATCH, SEQ_LEN)),)
        options = BuildOptions(precision, "plugins", ranges, profiles, packed=packed, mix=mix)
        able = capabilities(Version(8, 6), Gpu("H100", (9, 0)))
        kept = define_plugins(tensorrt, network, Source("", model, adapter), options, table, lambda product: (), able)
        feeds = [pack(feed) if packed else feed for feed in batches]
        logits = [run(network, {k: v.astype(np.int32) for k, v in feed.items()}) for feed in feeds]
        right = int((np.concatenate(logits).argmax(1) == labels).sum())
        print(f"{name}: {right / len(labels):.4f} ({right} of {len(labels)}), {len(set(kept.used))} ranges", flush=True)


if __name__ == "__main__":
    main()
