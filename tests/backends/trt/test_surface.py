"""Names: what quantkit uses of TensorRT 8.6.0 is there, and the stand-in has nothing that the real one has not."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import quantkit

SURFACE = json.loads((Path(__file__).parent / "api_8_6_0.json").read_text())
ROOM = Path(quantkit.__file__).parent / "backends" / "trt"
LATER = {"STRONGLY_TYPED"}
"""Names of later versions, used only where the capability table says so."""
OBJECTS = {
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "builder": "Builder",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
}


def chains(tree: ast.AST):
    """Every dotted name in a module, as tuples of its parts."""
    for node in ast.walk(tree):
        parts: list[str] = []
        part = node
        while isinstance(part, ast.Attribute):
            parts.append(part.attr)
            part = part.value
        if parts and isinstance(part, ast.Name):
            yield (part.id, *reversed(parts))


def used(start: str):
    """(module, chain) for every chain that begins at a variable or attribute of that name."""
    for path in (*sorted(ROOM.glob("*.py")), *(ROOM / "plugins" / f"{name}.py" for name in ("layers", "mixed"))):
        for chain in chains(ast.parse(path.read_text())):
            for i, part in enumerate(chain[:-1]):
                if part == start and (i == 0 or chain[i - 1] in ("self", "bench")):
                    yield path.name, chain[i + 1 :]


def test_names_of_the_module_and_members_of_its_classes_exist() -> None:
    found = list(used("trt"))
    assert len(found) > 30
    for where, chain in found:
        if chain[0] in ("versions", "capabilities"):
            continue
        assert chain[0] in SURFACE["module"], f"{where}: {'.'.join(chain)}"
        if len(chain) > 1 and chain[0] in SURFACE["classes"] and chain[1] not in LATER | {"__init__"}:
            assert chain[1] in SURFACE["classes"][chain[0]], f"{where}: {'.'.join(chain)}"


@pytest.mark.parametrize("variable, cls", list(OBJECTS.items()))
def test_methods_of_its_objects_exist(variable: str, cls: str) -> None:
    own = {"derived", "kept", "able", "num_layers", "items"}
    for where, chain in used(variable):
        if (
            where in ("definition.py", "layers.py", "build.py", "network.py", "ranges.py", "plan.py")
            and chain[0] not in own
        ):
            assert chain[0] in SURFACE["classes"][cls], f"{where}: {variable}.{chain[0]}"


def test_layers_that_the_definition_adds_exist() -> None:
    text = (ROOM / "definition.py").read_text()
    names = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    added = {name for name in names if isinstance(name, str) and name.startswith("add_")}
    assert len(added) >= 12
    assert added <= set(SURFACE["classes"]["INetworkDefinition"])


def test_the_stand_in_has_only_real_names(fake_trt: None) -> None:
    import tensorrt

    for name, cls in vars(tensorrt).items():
        if name in SURFACE["classes"] and isinstance(cls, type):
            public = {n for n in vars(cls) if not n.startswith("_")}
            assert public <= set(SURFACE["classes"][name]), name


def test_the_stand_in_refuses_unknown_attributes(fake_trt: None) -> None:
    import tensorrt

    config = tensorrt.Builder(tensorrt.ILogger()).create_builder_config()
    with pytest.raises(AttributeError, match="max_workspace"):
        config.max_workspace = 1
    with pytest.raises(AttributeError):
        tensorrt.Builder(tensorrt.ILogger()).max_workspace_size_bytes  # noqa: B018
