"""How far the tables of two CPU backends' collectors are apart, and whether threads change a bit.

    python benchmarks/collectors.py

Demo model, 128 sentences, both rules of ranges; relative differences of the scales, tensor by tensor.
"""

from __future__ import annotations

import os
import tempfile

import numpy as np

from quantkit.calibrate import CALIBRATORS, make_calibrator
from quantkit.pipeline.calibration import Collected, calibrated_table, collect
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher

WAYS = (("openvino", 1), ("openvino", 2), ("onnxruntime", 1), ("onnxruntime", 2))


def main() -> None:
    """Collects each way with an empty cache, and prints a line a method."""
    for order_free in (False, True):
        found: dict[tuple[str, int], Collected] = {}
        for backend, threads in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["QUANTKIT_CACHE"] = folder
                settings = Settings(calib_samples=128, order_free=order_free, backend=backend, threads=threads)
                found[backend, threads] = collect(Workspace(settings, SilentWatcher()))
        print("order-free ranges" if order_free else "TensorRT's ranges")
        for backend in ("openvino", "onnxruntime"):
            same = found[backend, 1].histograms == found[backend, 2].histograms
            print(f"  {backend}: {'the same bits' if same else 'other bits'} with 1 and 2 threads")
        for method in CALIBRATORS:
            tables = [calibrated_table(found[way], make_calibrator(method)) for way in (WAYS[0], WAYS[2])]
            mine, theirs = (table.scales for table in tables)
            apart = np.array([abs(float(mine[n]) / float(theirs[n]) - 1) for n in mine if theirs[n] > 0])
            print(
                f"  {method}: median {np.median(apart):.1e}, 95 % {np.percentile(apart, 95):.1e}, "
                f"most {apart.max():.1e}; {(apart > 1e-5).sum()} of {len(apart)} tensors beyond 1e-5"
            )


if __name__ == "__main__":
    main()
