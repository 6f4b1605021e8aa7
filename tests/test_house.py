"""The rules of the house that a machine can check: floors, public surface, light imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import striate

ROOT = Path(striate.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
SURFACE = Path(__file__).with_name("public_surface.json")

FLOORS = {
    "errors": 0,
    "engine": 0,
    "data": 0,
    "layers": 0,
    "models": 1,
    "explain": 2,
    "stress": 2,
    "compress": 2,
    "learn": 2,
    "theory": 2,
    "tasks": 2,
    "examine": 3,
    "papers": 3,
    "report": 4,
    "cli": 5,
    "web": 5,
    "testing": 5,
}
SIDEWAYS = {
    ("data", "engine"),  # readers use the cache and the model's preprocessing
    ("layers", "engine"),  # looking into a person's attention layers leaves the model as it came
    ("learn", "stress"),  # adversarial training needs an attack
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module] if node.module != "striate" else [f"striate.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [module for module in found if module.startswith("striate.")]


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != ROOT], ids=name_of)
def test_a_module_imports_only_from_floors_below(path: Path) -> None:
    room = name_of(path).split(".")[1]
    for imported in imports(path):
        other = imported.split(".")[1]
        allowed = other in {room, "errors", "__version__"} or (room, other) in SIDEWAYS or FLOORS[other] < FLOORS[room]
        assert allowed, f"{name_of(path)} (floor {FLOORS[room]}) imports {imported} (floor {FLOORS[other]})"


def test_papers_hold_no_method_code() -> None:
    for path in (ROOT / "papers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("Module" in ast.unparse(base) for base in node.bases):
                pytest.fail(f"{path.name} defines the network {node.name}; networks live in models/, layers in layers/")


def public_surface() -> dict[str, list[str]]:
    surface = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                surface[name_of(path)] = sorted(ast.literal_eval(node.value))
    return surface


def test_public_surface_is_the_snapshot() -> None:
    """Changing a public name is a visible act: rerun with ``python tests/test_house.py`` and commit the difference."""
    assert public_surface() == json.loads(SURFACE.read_text())


def test_every_module_declares_its_public_names_and_its_purpose() -> None:
    surface = public_surface()
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
        defines = any(
            isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") for node in tree.body
        )
        if defines:
            assert name_of(path) in surface, f"{name_of(path)} defines public names but has no __all__"


def loaded_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"torch", "torchvision", "timm", "numpy", "scipy", "sklearn", "skimage", "matplotlib", "captum", "accelerate"}


@pytest.mark.parametrize("code", ["import striate", "import striate.cli", "import striate.explain, striate.examine"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert not loaded_after(code) & HEAVY


def test_python_m_striate_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "striate", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("striate ")


def test_every_lazy_name_resolves() -> None:
    for name in striate.__all__:
        assert getattr(striate, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = striate.nonsense


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(public_surface(), indent=1) + "\n")
