"""The shape of the code, read from its source: floors, no circles, budgets of lines, and where the core ends."""

import ast
import re
import sys
from pathlib import Path

import pytest

from lab.__main__ import TOOLS

ROOT = Path(__file__).resolve().parent.parent
CORE = ("schedule", "model", "data", "train_eager")
FLOORS = (
    "core", "lab.base", "lab.options", "lab.images", "lab.machine", "lab.ladder", "lab.runs", "lab.report", "lab",
    "lab.posts",
)  # fmt: skip
# The command line on top of the core, which reaches into lab/ where it is run as a script, in one line.
HAND_OVER = re.compile(r"    from lab\.\w+ import main as lab_main\b.*")
# Libraries that few need, and that are imported where they are used; all else stands at a file's top.
LATE = ("matplotlib", "scipy", "tensorboard", "PIL")

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*(ROOT / f"{name}.py" for name in CORE), *sorted(ROOT.glob("lab/**/*.py"))]
}
SOURCES = {module: path.read_text() for module, path in MODULES.items()}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
LAB = [module for module in MODULES if module not in CORE]


def floor(module):
    if module in CORE:
        return 0
    return max((len(name), k) for k, name in enumerate(FLOORS) if module == name or module.startswith(name + "."))[1]


def imported(node):
    """The names that an import may mean."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written in full"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def uses(module, nodes=None):
    """The project's modules that it imports, wherever in the file; but for the hand-over."""
    found = set()
    for node in nodes or ast.walk(TREES[module]):
        line = SOURCES[module].splitlines()[node.lineno - 1] if imported(node) else ""
        if not (module == "train_eager" and HAND_OVER.fullmatch(line)):
            found |= {name for name in imported(node) if name in MODULES and name != module}
    # `from lab.images import load` names the package, whose file is empty, and the module.
    return {name for name in found if not any(other.startswith(name + ".") for other in found)} or found


def below(module):
    """The project's modules that importing it imports, and itself."""
    found, new = set(), {module}
    while new:
        found |= new
        new = {name for one in new for name in uses(one)} - found
    return found


def functions(module):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(TREES[module]) if isinstance(node, kinds)]


def test_the_core_imports_only_itself_and_three_libraries():
    for module in CORE:
        for node in ast.walk(TREES[module]):
            line = SOURCES[module].splitlines()[node.lineno - 1] if imported(node) else ""
            if imported(node) and not HAND_OVER.fullmatch(line):
                root = imported(node)[0].partition(".")[0]
                standard = root in ("numpy", "tensorflow", "tqdm") or root in sys.stdlib_module_names
                assert standard or (module == "train_eager" and root in CORE[:3]), f"{module}: {line}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    up = [name for name in uses(module) if floor(name) > floor(module)]
    assert not up, f"{module}, on floor {FLOORS[floor(module)]}, imports {up}"


def test_no_modules_import_each_other_in_a_circle():
    arrows, done = {module: uses(module) for module in MODULES}, set()
    while left := set(MODULES) - done:
        free = {module for module in left if not arrows[module] - done}
        assert free, f"a circle among {sorted(left)}"
        done |= free


@pytest.mark.parametrize("module", MODULES)
def test_no_module_of_the_project_is_imported_inside_a_function(module):
    for function in functions(module):
        inner = uses(module, list(ast.walk(function)))
        assert not inner, f"{module}.{function.name} imports {sorted(inner)}"
        late = {name.partition(".")[0] for node in ast.walk(function) for name in imported(node)[:1]}
        assert late <= set(LATE) or module not in CORE, f"{module}.{function.name} imports {sorted(late)}"


def test_a_tool_answers_a_wrong_flag_before_tensorflow_loads():
    slow = {m for m, tree in TREES.items() if any("tensorflow" in imported(node) for node in ast.walk(tree))}
    waiting = {module for module, _ in TOOLS.values() if below(module) & slow}
    assert waiting == {"lab.machine.devices"}  # which asks TensorFlow


def test_the_core_has_at_most_900_lines():
    lines = {module: SOURCES[module].count("\n") for module in CORE}
    assert sum(lines.values()) <= 900, lines


@pytest.mark.parametrize("module", LAB)
def test_a_file_of_the_lab_has_at_most_500_lines(module):
    assert SOURCES[module].count("\n") <= 500


@pytest.mark.parametrize("module", MODULES)
def test_a_function_has_at_most_60_lines(module):
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(module) if f.end_lineno - f.lineno >= 60}
    assert not long


def test_no_name_stands_at_the_top_of_two_core_files():
    """The single cell, where they follow one another, would lose one of them."""
    names = []
    for module in CORE:
        for node in TREES[module].body:
            if isinstance(node, ast.Assign):
                names += [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) or hasattr(node, "name"):
                names.append(node.target.id if isinstance(node, ast.AnnAssign) else node.name)
    assert sorted(names) == sorted(set(names)), "two files of the core define one name"


def test_the_core_names_the_lab_only_where_it_hands_over():
    for module in CORE[:3]:
        assert not re.search(r"\blab\b", SOURCES[module]), module
    lines = SOURCES["train_eager"].splitlines()
    (at,) = [number for number, line in enumerate(lines) if HAND_OVER.fullmatch(line)]
    place = range(at - 1, at + 3)  # the condition, the import, a line between, the call
    assert '__name__ == "__main__"' in lines[at - 1]
    named = [number for number, line in enumerate(lines) if re.search(r"\blab(_main)?\b", line)]
    assert set(named) <= set(place), [lines[number] for number in named]


def test_the_hand_over_stands_before_the_slow_imports():
    lines = SOURCES["train_eager"].splitlines()
    (at,) = [number for number, line in enumerate(lines) if HAND_OVER.fullmatch(line)]
    slow = [n for n, line in enumerate(lines) if re.match(r"(import|from) (numpy|tensorflow|data|model)\b", line)]
    assert at < min(slow)


def test_the_readme_has_at_most_ten_kilobytes():
    assert len((ROOT / "README.md").read_bytes()) <= 10 * 1024


def test_the_cell_has_at_most_950_lines():
    assert (ROOT / "colab_cell.py").read_text().count("\n") <= 950
