"""Rewriting of graphs: names, nodes, constants."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from quantkit.network.rewriting import drop_unread_constants, fresh_name, replace_nodes


def test_a_name_that_is_taken_gets_a_number():
    taken = {"a", "a_1"}
    assert [fresh_name(name, taken) for name in ("b", "a", "b")] == ["b", "a_2", "b_1"]
    assert taken == {"a", "a_1", "b", "a_2", "b_1"}


def test_constants_that_a_subgraph_reads_or_that_are_outputs_stay():
    inner = [helper.make_graph([helper.make_node("Identity", [name], ["y"])], "g", [], []) for name in ("then", "else")]
    branch = helper.make_node("If", ["flag"], ["out"], then_branch=inner[0], else_branch=inner[1])
    names = ("flag", "then", "else", "given", "left", "over")
    constants = [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in names]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("out", "given")]
    graph = helper.make_graph([branch], "outer", [], outputs, constants)
    drop_unread_constants(graph, {"over", "then"})
    assert [tensor.name for tensor in graph.initializer] == ["flag", "then", "else", "given", "left"]
    drop_unread_constants(graph)
    assert [tensor.name for tensor in graph.initializer] == ["flag", "then", "else", "given"]


def test_nodes_are_replaced_by_others_and_by_their_own():
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="a")], "g", [], [])
    replace_nodes(graph, [*graph.node, helper.make_node("Relu", ["y"], ["z"], name="b")])
    assert [node.name for node in graph.node] == ["a", "b"]
