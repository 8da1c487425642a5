"""The two ways to an INetworkDefinition: TensorRT's ONNX parser, and BERT defined through the network API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends.trt.capabilities import Capabilities
from quantkit.backends.trt.definition import Group, TrtBuilder
from quantkit.backends.trt.options import BuildOptions, ShapeRange, Source
from quantkit.errors import BackendError, InputError

if TYPE_CHECKING:
    from quantkit.backends.trt.plugins.definition import PluginNetwork, Tiles
    from quantkit.tables.table import CalibrationTable

MOST_ERRORS = 3


def create_network(trt: Any, builder: Any, able: Capabilities) -> Any:
    """An empty network of the kind that this version takes."""
    flags = trt.NetworkDefinitionCreationFlag
    if not able.can("flags"):
        # Every network is strongly typed there, whether the flag is still known or not.
        typed = getattr(flags, "STRONGLY_TYPED", None)
        return builder.create_network(0 if typed is None else 1 << int(typed))
    # Since 10.0 every network has an explicit batch and the flag is only accepted.
    return builder.create_network(1 << int(flags.EXPLICIT_BATCH) if able.version.major < 10 else 0)


def parse_onnx(trt: Any, network: Any, data: bytes, logger: Any) -> Any:
    """Fills `network` from a serialized ONNX model; the parser, which must live as long as the network.

    Raises:
        BackendError: the parser refuses the model; its first errors are told with the node they concern.
    """
    parser = trt.OnnxParser(network, logger)
    if parser.parse(data):
        return parser
    errors = [parser.get_error(i) for i in range(min(parser.num_errors, MOST_ERRORS))]
    told = "; ".join(f"node {error.node()}: {' '.join(str(error.desc()).split())}" for error in errors)
    raise BackendError(
        f"TensorRT's ONNX parser refuses the model: {told or 'no reason given'}.",
        "Simplify that operation, or build BERT through the network API (--network api).",
    )


def define_bert(trt: Any, network: Any, source: Source, options: BuildOptions) -> TrtBuilder:
    """Fills `network` with the BERT of a model folder; the builder, whose arrays must live until the engine is built.

    Raises:
        ModelError: the folder's weights or its adapter cannot be used.
        BackendError: TensorRT refuses a layer.
    """
    from quantkit.network.bert import build_bert
    from quantkit.network.config import BertConfig
    from quantkit.network.weights import Head, read_weights

    folder = Path(source.model)
    config = BertConfig.from_dir(folder)
    head: Head = "masked-lm" if source.head == "masked-lm" else "classifier"
    weights = read_weights(folder, source.adapter or None, config, head=head).weights
    groups = qkv_groups(weights, config.num_layers) if options.fuse_qkv else {}
    builder = TrtBuilder(trt, network, options.dense, options.norm, groups)
    build_bert(builder, config, weights, batch=source.batch or None, seq_len=source.seq_len or None, head=head)
    return builder


def define_plugins(
    trt: Any,
    network: Any,
    source: Source,
    options: BuildOptions,
    table: CalibrationTable | None,
    tiles: Tiles,
    able: Capabilities | None = None,
    *,
    built: bool = True,
) -> PluginNetwork:
    """Fills `network` with the BERT of a model folder, made of plugins; what it returns must live until the build ends.

    Args:
        trt: the tensorrt module.
        network: the INetworkDefinition.
        source: the model folder.
        options: what to build.
        table: scales, for INT8.
        tiles: see `Tiles`.
        able: what this TensorRT and GPU can do; None when everything is ours.
        built: whether our library is built.

    Raises:
        ModelError: the folder's weights or its adapter cannot be used.
        BackendError: the plugins cannot make this network.
        TableError: the table lacks a tensor that becomes INT8.
    """
    from quantkit.backends.trt.plugins.choice import Chosen, Wanted, choose
    from quantkit.backends.trt.plugins.definition import Form, PluginNetwork, head_refusal
    from quantkit.backends.trt.plugins.mixed import MixedNetwork
    from quantkit.network.config import BertConfig
    from quantkit.network.weights import read_weights

    folder = Path(source.model)
    config = BertConfig.from_dir(folder)
    if reason := head_refusal(source.head):
        raise BackendError(f"This model cannot be built from plugins: {reason}.", "Use --network api.")
    longest = max((shapes.max[1] for shapes in options.profiles), default=source.seq_len)
    wanted = Wanted(config, table is not None, options.packed, longest)
    chosen = Chosen() if able is None else choose(options.mix, able, built, wanted)
    weights = read_weights(folder, source.adapter or None, config).weights
    definition = (
        PluginNetwork(trt, network, config, weights, table, tiles)
        if chosen.ours
        else MixedNetwork(trt, network, config, weights, table, tiles, chosen)
    )
    definition.says = chosen.says
    definition.build(Form(source.batch, source.seq_len, options.packed or not chosen.ours, longest))
    return definition


def qkv_groups(weights: dict[str, Any], layers: int) -> dict[str, Group]:
    """For every layer, query, key and value as one product."""
    groups = {}
    for i in range(layers):
        parts = {
            f"layer{i}.attention.{part}.matmul": weights[f"encoder.layer.{i}.attention.self.{part}.weight"].T
            for part in ("query", "key", "value")
        }
        groups[next(iter(parts))] = Group(f"layer{i}.attention.qkv", parts)
    return groups


def inputs_of(network: Any) -> list[Any]:
    """The input tensors."""
    return [network.get_input(i) for i in range(network.num_inputs)]


def is_dynamic(network: Any) -> bool:
    """Whether an input has a dimension that may change."""
    return any(-1 in tuple(tensor.shape) for tensor in inputs_of(network))


def float_tensors(trt: Any, network: Any) -> list[str]:
    """Names of the float tensors that layers compute at run time, constants left out, in network order."""
    names: dict[str, None] = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.CONSTANT:
            continue
        for j in range(layer.num_outputs):
            tensor = layer.get_output(j)
            if tensor is not None and tensor.dtype in (trt.float32, trt.float16) and not tensor.is_shape_tensor:
                names.setdefault(str(tensor.name))
    return list(names)


def add_profiles(builder: Any, config: Any, network: Any, profiles: tuple[ShapeRange, ...]) -> list[Any]:
    """Adds an optimization profile a range, over all dynamic inputs.

    Raises:
        InputError: a dynamic network without a range, or an input that is not (batch, sequence).
    """
    dynamic = [tensor for tensor in inputs_of(network) if -1 in tuple(tensor.shape)]
    if dynamic and not profiles:
        raise InputError("The network has dynamic shapes and no range of shapes was given.", "Name one with --shapes.")
    made = []
    for shapes in profiles if dynamic else ():
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            own = tuple(tensor.shape)
            if len(own) == 1:  # packed sentences
                profile.set_shape(tensor.name, *packed_range(str(tensor.name), shapes))
                continue
            if len(own) != 2:
                raise InputError(f"The input {tensor.name!r} has shape {own}; expected (batch, sequence).")
            low, middle, high = (
                tuple(want if have == -1 else have for have, want in zip(own, wanted, strict=True))
                for wanted in (shapes.min, shapes.opt, shapes.max)
            )
            profile.set_shape(tensor.name, low, middle, high)
        if config.add_optimization_profile(profile) < 0:
            raise InputError(f"TensorRT refuses the range of shapes {shapes.min} to {shapes.max}.")
        made.append(profile)
    return made


def profiles_of(source: Source, options: BuildOptions) -> tuple[ShapeRange, ...]:
    """Ranges of shapes: those asked for, or for a fixed shape every batch that is no larger.

    The latter is for sentences that a network packs though nobody asked for it.
    """
    if options.profiles or not (source.batch and source.seq_len):
        return options.profiles
    largest = (source.batch, source.seq_len)
    return (ShapeRange((1, 1), largest, largest),)


def packed_range(name: str, shapes: ShapeRange) -> tuple[tuple[int], tuple[int], tuple[int]]:
    """Smallest, optimal and largest extent of an input of packed sentences, from ranges of padded shapes."""
    from quantkit.backends.trt.plugins.definition import STARTS

    if name == STARTS:
        return (shapes.min[0] + 1,), (shapes.opt[0] + 1,), (shapes.max[0] + 1,)
    return (shapes.min[0],), (shapes.opt[0] * shapes.opt[1],), (shapes.max[0] * shapes.max[1],)
