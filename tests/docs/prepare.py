"""What stands in the folder in which a document's commands run; one function a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from report_helpers import RECORD
from tiny import make_bert, make_glue
from torch_like import TorchLike

from quantkit.report.record import Record
from quantkit.tables import CalibrationTable, Entry, Provenance


def tables(folder: Path) -> None:
    """A BERT of one layer as torch exports it, and calibration tables for it as TensorRT 8.6 writes them."""
    model = TorchLike(1).model()
    onnx.save(model, folder / "model.onnx")
    names = [node.output[0] for node in model.graph.node if node.op_type not in ("Softmax", "Constant")]
    draw = np.random.default_rng(20)
    # TensorRT's parser gives the result of a Softmax a name of its own, and knows constants by the layer's number.
    names.insert(2, "(Unnamed Layer* 2) [Constant]_output")
    names.insert(names.index("/MatMul_1_output_0"), "(Unnamed Layer* 49) [Softmax]_output")
    scales = {name: np.float32(0.03 * 10 ** draw.uniform(-1, 1)) for name in names}
    scales["(Unnamed Layer* 49) [Softmax]_output"] = np.float32(1 / 127)
    entropy = CalibrationTable({name: Entry(scale) for name, scale in scales.items()}, "entropy")
    entropy.save(folder / "entropy.cache")
    wider = {**scales, "/Erf_output_0": np.float32(1 / 127)}
    wider["/Add_5_output_0"] *= np.float32(1.5)
    del wider["logits"]
    CalibrationTable({name: Entry(scale) for name, scale in wider.items()}, "minmax").save(folder / "minmax.cache")
    names_of_another = {name.replace("/dense", "/linear"): Entry(scale) for name, scale in scales.items()}
    CalibrationTable(names_of_another, "entropy").save(folder / "other_names.cache")
    lines = (folder / "entropy.cache").read_text().splitlines()
    broken = [*lines[:3], lines[3].rpartition(" ")[0] + " 7fc00000", lines[4].rpartition(" ")[0] + " 0", *lines[5:20]]
    (folder / "broken.cache").write_text("\n".join(broken) + "\n")
    origin = Provenance("3f" * 32, "77" * 32, 512, 0, 16, 64, "mse", {}, "tensorrt", False, "openvino")
    full = {name: Entry(scale, float(scale) * -40, float(scale) * 127, "mse") for name, scale in scales.items()}
    CalibrationTable(full, "mse", {}, origin).save(folder / "mse.json")


def report(folder: Path) -> None:
    """The record of a run, where `quantkit run` leaves it."""
    Record({**RECORD, "calibration": None}).save(folder / "quantkit-out" / "record.json")


def tutorial(folder: Path) -> None:
    """A tiny BERT, its task in GLUE's layout, and the same rows as CSV under other names."""
    (folder / "my-bert").mkdir()
    (folder / "glue").mkdir()
    make_bert(folder / "my-bert")
    make_glue(folder / "glue")
    for split in ("train", "dev"):
        rows = (folder / "glue" / "SST-2" / f"{split}.tsv").read_text().splitlines()[1:]
        lines = ["review,sentiment", *(row.replace("\t", ",") for row in rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


PREPARE = {"tables.md": tables, "report.md": report, "tutorial.md": tutorial}
"""Document under docs/ -> what prepares its folder. A document that stands here has all its blocks marked."""
