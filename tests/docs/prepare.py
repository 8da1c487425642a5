"""What stands in the folder in which a document's commands run, and what stands in for a hub, a GPU and the demo.

One function a document. The commands run as the document shows them; what is small or made up is made so here:

- models are BERTs of two layers with random weights, rows are made sentences;
- `demo` and what comes from the hub are those too;
- TensorRT, its GPU, nvcc and the library of plugins are the stand-ins of `tests/trt_helpers.py`;
- `tune` is told how fast its plans are, because such small models are never faster in INT8.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from docrun import CHECKOUT, call_here
from tiny import made_sentences, make_bert, make_glue
from torch_like import TorchLike
from trt_helpers import fake_tensorrt, headers, no_plugins_loaded, nvcc, stub_library

from quantkit.collect.histogram import Histogram
from quantkit.data import demo, hub
from quantkit.data.examples import Examples
from quantkit.evaluate.latency import Latency
from quantkit.network.model import load_model
from quantkit.pipeline import hub as model_hub
from quantkit.pipeline import memory
from quantkit.search import clock
from quantkit.tables import CalibrationTable, Entry, Provenance


@dataclass
class Place:
    """Where the commands of a document run.

    Attributes:
        folder: the current one.
        stack: undoes the stand-ins.
        names: what the document's Python blocks take for granted.
        ends: command -> the code with which it ends because of a stand-in.
    """

    folder: Path
    stack: ExitStack
    names: dict[str, Any] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)

    def instead(self, owner: Any, name: str, value: Any) -> None:
        """Puts a stand-in in the place of an attribute."""
        self.stack.enter_context(mock.patch.object(owner, name, value))

    def bert(self, name: str, heads: int = 2, positions: int = 64) -> Path:
        """A tiny BERT; plugins want heads of 32."""
        (self.folder / name).mkdir(parents=True)
        return make_bert(self.folder / name, heads=heads, positions=positions)

    def glue(self, name: str, train: int = 120) -> Path:
        """A small SST-2 in GLUE's layout."""
        (self.folder / name).mkdir(parents=True)
        return make_glue(self.folder / name, train=train)


def adapter(folder: Path) -> Path:
    """A LoRA adapter for the tiny BERT, in PEFT's layout."""
    from safetensors.numpy import save_file

    draw = np.random.default_rng(5)
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.bert.encoder.layer.0.attention.self.query"
    shapes = {f"{name}.lora_A.weight": (4, 32), f"{name}.lora_B.weight": (32, 4)}
    save_file(
        {key: (draw.standard_normal(shape) * 0.1).astype(np.float32) for key, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def stand_in_for_demo(place: Place) -> None:
    """`demo` is a tiny BERT with an adapter, and made sentences."""
    model, lora = place.bert(".demo/bert"), adapter(place.folder / ".demo" / "lora")

    def examples(split: str) -> Examples:
        train = split == "train"
        texts = made_sentences(120 if train else 50, seed=3 if train else 4)
        labels = np.array([len(text) % 2 for text in texts])
        return Examples(tuple((text,) for text in texts), labels, "made sentences", split)

    place.instead(demo, "demo_model_dir", lambda: model)
    place.instead(demo, "demo_adapter_dir", lambda: lora)
    place.instead(demo, "demo_examples", examples)


def stand_in_for_hub(place: Place, model: Path) -> None:
    """Every model of the hub is `model`, and every split of a task there has 60 made rows."""

    class Rows(dict):
        column_names = ("sentence", "sentence1", "sentence2", "label")

    def rows(name: str, config: str, split: str) -> Rows:
        first = made_sentences(60, seed=len(split))
        labels = [len(text) % 2 for text in first]
        return Rows(sentence=first, sentence1=first, sentence2=first[::-1], label=labels)

    place.instead(hub, "_load", rows)
    place.instead(model_hub, "fetch_model", lambda name: model)


def stand_in_for_gpu(place: Place, idle: bool) -> None:
    """TensorRT 8.6 on an H100, with nvcc, which makes a library that registers plugins; idle engines answer zeros."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to make the stand-in's library with")
    place.stack.enter_context(fake_tensorrt())
    place.stack.enter_context(no_plugins_loaded())
    library = stub_library(place.folder / ".bin")
    nvcc(place.folder / ".cuda", f'while [ "$1" != -o ]; do shift; done; cp "{library}" "$2"')
    place.stack.enter_context(
        mock.patch.dict(os.environ, {"CUDA_HOME": str(place.folder / ".cuda"), "FAKE_IDLE": "1" * idle})
    )


def stand_in_for_clock(place: Place) -> None:
    """Plans take as long as their products say: three milliseconds one in floating point, one in INT8."""

    def times(engines: Any, feeds: Any, *, warmup: int, rounds: int) -> list[Latency]:
        found = []
        for engine in engines:
            ms = 3.0 * (engine.float_ops or 0) + 1.0 * (engine.int8_ops or 0)
            found.append(Latency(ms, ms, ms, 16e3 / ms, (ms,) * rounds))
        return found

    place.instead(clock, "time_engines", times)


def calibrated(model: Path, data: Path, out: Path, *options: str) -> None:
    """`quantkit calibrate`."""
    words = ["quantkit", "calibrate", str(model), "--task", "sst2", "--data", str(data), "--out", str(out), *options]
    code, said = call_here(words)
    assert code == 0, said


def readme(place: Place) -> None:
    """A tiny BERT, an adapter, GLUE's layout, an ONNX file with rows for it, and the hub."""
    model, data = place.bert("path/to/bert"), place.glue("path/to/glue") / "SST-2"
    adapter(place.folder / "path" / "to" / "lora")
    onnx.save(load_model(model).proto, "model.onnx")
    rows = (data / "dev.tsv").read_text().splitlines()
    Path("dev.csv").write_text("".join(row.replace("\t", ",") + "\n" for row in rows))
    Path("train.txt").write_text("".join(f"{text}\n" for text in made_sentences(120, seed=3)))
    stand_in_for_hub(place, model)
    draw = np.random.default_rng(0)
    place.names["batches"] = [{"x": draw.standard_normal((4, 8)).astype(np.float32)} for _ in range(3)]


def accuracy(place: Place) -> None:
    """The demo."""
    stand_in_for_demo(place)


def own_sentences(place: Place) -> None:
    """The demo, with the sentences that ship."""
    stand_in_for_demo(place)
    shutil.copytree(CHECKOUT / "calib_data", "calib_data")


def calibration_methods(place: Place) -> None:
    """The demo, and histograms of two shards."""
    stand_in_for_demo(place)
    model, data = place.bert(".bert"), place.glue(".glue")
    for name, seed in (("shard-a", 1), ("shard-b", 2)):
        Path(f".{name}.txt").write_text("".join(f"{text}\n" for text in made_sentences(40, seed=seed)))
        words = ["quantkit", "calibrate", str(model), "--task", "sst2", "--data", str(data)]
        words += ["--calib-data", f".{name}.txt", "--order-free", "--out", name]
        code, said = call_here(words)
        assert code == 0, said
    draw = np.random.default_rng(0)
    place.names["histograms"] = dict.fromkeys(
        ("probs", "masked", "scores"), Histogram.empty().updated(draw.standard_normal(4096).astype(np.float32))
    )


def tuning(place: Place) -> None:
    """A tiny BERT, an adapter, and rows enough to calibrate with some and to decide by others."""
    place.bert("path/to/bert")
    place.glue("path/to/glue", train=640)
    adapter(place.folder / "path" / "to" / "lora")
    stand_in_for_clock(place)


def gpu_performance(place: Place) -> None:
    """A stand-in GPU with nvcc and TensorRT's headers, a BERT with heads and positions enough, and a table."""
    model, data = place.bert("MODEL", heads=1, positions=1024), place.glue("glue")
    headers(place.folder / "TensorRT" / "include", 8, 6)
    calibrated(model, data, place.folder / ".tables", "--method", "mse")
    shutil.copy(".tables/mse.json", "TABLE.json")
    stand_in_for_gpu(place, idle=True)


def tensorrt(place: Place) -> None:
    """A stand-in GPU, a BERT, rows, and an engine that was built here."""
    model = place.bert("MODEL")
    data = place.glue("glue")
    stand_in_for_gpu(place, idle=False)
    words = ["quantkit", "build", "MODEL", "--task", "sst2", "--data", str(data), "--backend", "tensorrt"]
    code, said = call_here([*words, "-p", "fp16", "--out", ".built"])
    assert code == 0, said
    record = json.loads(Path(".built/record.json").read_text())
    plan = Path(record["engines"][0]["details"]["plan"])
    for path in plan.parent.glob(f"{plan.stem}.*"):
        shutil.copy(path, f"ENGINE{path.name.removeprefix(plan.stem)}")
    draw = np.random.default_rng(0)
    feed = {"input_ids": draw.integers(5, 100, (16, 64)), "attention_mask": np.ones((16, 64), np.int64)}
    place.names |= {"network": load_model(model), "batches": [feed | {"token_type_ids": np.zeros((16, 64), np.int64)}]}
    place.names |= {"ids": feed["input_ids"], "mask": feed["attention_mask"]}
    # TensorRT's entropy calibrator of the stand-in takes the maximum, so the thresholds differ, and it says so.
    place.ends["quantkit verify MODEL --task sst2 --data glue --backend tensorrt --calibrators minmax,entropy2"] = 1


def tables(place: Place) -> None:
    """A BERT of one layer as torch exports it, and calibration tables for it as TensorRT 8.6 writes them."""
    folder = place.folder
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


def report(place: Place) -> None:
    """The demo; a BERT with an adapter and rows for each of two tasks."""
    stand_in_for_demo(place)
    place.bert("bert")
    rows = (place.glue("glue") / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    (place.folder / "glue" / "MRPC").mkdir()
    for split, part in (("train", rows[:60]), ("dev", rows[60:])):
        pairs = (row.split("\t") for row in part)
        lines = ["Quality\t#1 String\t#2 String", *(f"{label}\t{text}\tthe {text}" for text, label in pairs)]
        (place.folder / "glue" / "MRPC" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    for task in ("sst2", "mrpc"):
        adapter(place.folder / "adapters" / task)


def tutorial(place: Place) -> None:
    """A tiny BERT, its task in GLUE's layout, the same rows as CSV under other names; the hub and a GPU."""
    model, data = place.bert("my-bert"), place.glue("glue")
    for split in ("train", "dev"):
        rows = (data / "SST-2" / f"{split}.tsv").read_text().splitlines()[1:]
        lines = ["review,sentiment", *(row.replace("\t", ",") for row in rows)]
        Path(f"{split}.csv").write_text("\n".join(lines) + "\n")
    stand_in_for_hub(place, model)
    stand_in_for_gpu(place, idle=True)


def distributed(place: Place) -> None:
    """A tiny BERT, rows enough for a search, and histograms of two parts."""
    model, data = place.bert("path/to/bert"), place.glue("path/to/glue", train=640)
    for name, seed in (("part1", 1), ("part2", 2)):
        Path(f".{name}.txt").write_text("".join(f"{text}\n" for text in made_sentences(40, seed=seed)))
        calibrated(
            model, data, place.folder / name, "--calib-data", f".{name}.txt", "--order-free", "--method", "minmax"
        )
    stand_in_for_clock(place)


def load(place: Place) -> None:
    """A tiny BERT and rows; what else this process holds does not count."""
    place.bert("path/to/bert")
    place.glue("path/to/glue")
    place.instead(memory, "resident", lambda: 600 << 20)


def reproducible(place: Place) -> None:
    """A record, and its model and rows once more in another place."""
    model, data = place.bert(".bert"), place.glue(".glue")
    words = ["quantkit", "eval", str(model), "--task", "sst2", "--data", str(data), "--out", "quantkit-out"]
    code, said = call_here(words)
    assert code == 0, said
    shutil.copytree(model, "moved/bert")
    shutil.copytree(data, "moved/glue")


def releasing(place: Place) -> None:
    """The demo."""
    stand_in_for_demo(place)


PREPARE: dict[str, Callable[[Place], None]] = {
    "README.md": readme,
    "accuracy.md": accuracy,
    "calib_data/README.md": own_sentences,
    "calibration-methods.md": calibration_methods,
    "distributed.md": distributed,
    "gpu-performance.md": gpu_performance,
    "load.md": load,
    "releasing.md": releasing,
    "report.md": report,
    "reproducible.md": reproducible,
    "tables.md": tables,
    "tensorrt.md": tensorrt,
    "tuning.md": tuning,
    "tutorial.md": tutorial,
}
"""Name of a document -> what prepares the current folder for it."""
