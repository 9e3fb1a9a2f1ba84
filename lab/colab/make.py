"""Makes colab_cell.py and davidnet.ipynb from the four files at the root.

python -m lab notebook            # writes both
python -m lab notebook --check    # writes nothing; exit code 1 if one of them is stale

The cell is the four files one after another, but for the constants, which come first: Colab shows them as a form. The
notebook is notebook.md, beside this file: each fenced block is a code cell, and {schedule.py} in one is that file.
"""

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from lab.base.errors import Exit, Parser, UserError, exits_with_one_line
from lab.base.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK, CELL = "davidnet.ipynb", "colab_cell.py"
BEFORE, SCRIPT = ("schedule.py", "model.py", "data.py"), "train_eager.py"  # each needs only those to its left
CONFIG = {"option", "Config"}  # in the notebook with the constants, whose values they take when they are defined
COMMAND_LINE = {"add_flags", "main"}  # not in the notebook


class Piece(NamedTuple):
    """A statement at the top of a file, with the lines above it, and the names that it defines."""

    node: ast.stmt
    text: str
    names: set[str]


class Core(NamedTuple):
    """The four files taken apart: the script's docstring, all imports, the script's constants, and all other pieces."""

    about: str
    imports: str
    form: str
    code: dict[str, list[Piece]]


def pieces(source: str) -> list[Piece]:
    """A file as its statements, less the comments that are for the formatter."""
    lines, start, parts = source.splitlines(), 0, []
    for node in ast.parse(source).body:
        text = "\n".join(line for line in lines[start : node.end_lineno] if not line.startswith("# fmt: "))
        targets = [name for target in getattr(node, "targets", []) for name in ast.walk(target)]
        names = {name.id for name in targets if isinstance(name, ast.Name)} or {getattr(node, "name", "")}
        parts.append(Piece(node, text, names - {""}))
        start = node.end_lineno or start
    return parts


def joined(parts: list[Piece]) -> str:
    """Pieces as they stood in their file."""
    return "\n".join(piece.text for piece in parts).strip("\n")


def take_apart(root: Path) -> Core:
    """Reads the four files. Raises UserError if two of them define the same name: one would be lost in the cell."""
    code = {name: pieces((root / name).read_text(encoding="utf-8")) for name in (*BEFORE, SCRIPT)}
    counts = Counter(name for parts in code.values() for piece in parts for name in piece.names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{', '.join(twice)}: defined twice in {', '.join(code)}; rename one")
    about, *script = code[SCRIPT]
    form = [piece for piece in script if "#@param" in piece.text]
    early = [piece for piece in script if isinstance(piece.node, ast.Expr)]  # set before TensorFlow is imported
    hand_over = [piece for piece in script if isinstance(piece.node, ast.If)][:-1]  # to the lab, which is not there
    loads = [piece for parts in code.values() for piece in parts if isinstance(piece.node, ast.Import | ast.ImportFrom)]
    gone = [about, *form, *early, *hand_over, *loads]
    left = {name: [piece for piece in parts if piece not in gone] for name, parts in code.items()}
    return Core(about.text, imports(loads, joined(early)), joined(form), left)


def imports(loads: list[Piece], early: str) -> str:
    """What the files import, less themselves: the standard library's, then the lines `early`, then the others."""
    names: dict[str, set[str]] = {}
    for piece in loads:
        start = f"from {piece.node.module} import " if isinstance(piece.node, ast.ImportFrom) else "import "
        if f"{getattr(piece.node, 'module', '')}.py" not in BEFORE:
            names.setdefault(start, set()).update(ast.unparse(alias) for alias in piece.node.names)  # type: ignore
    lines = [f"import {name}" for name in sorted(names.pop("import "))]
    lines += [start + ", ".join(sorted(chosen, key=str.swapcase)) for start, chosen in sorted(names.items())]
    standard = [line for line in lines if re.split(r"[ .]", line)[1] in sys.stdlib_module_names]
    return "\n".join([*standard, "", early, "", *(line for line in lines if line not in standard)])


def cell(core: Core) -> str:
    """The text of colab_cell.py."""
    made = f"# Made by python -m lab notebook from {', '.join(core.code)}; the values below are yours to edit."
    blocks = [core.about, made, core.form, core.imports]
    blocks += [f"# ==== {name} ".ljust(110, "=") + "\n\n\n" + joined(parts) for name, parts in core.code.items()]
    return "\n\n".join(blocks) + "\n"


def notebook(core: Core, template: str) -> str:
    """The text of davidnet.ipynb. Raises UserError if notebook.md leaves out a part of the code."""
    *script, _ = core.code[SCRIPT]  # less its start, if __name__ == "__main__"
    config = joined([piece for piece in script if piece.names & CONFIG])
    rest = joined([piece for piece in script if not piece.names & (CONFIG | COMMAND_LINE)])
    parts = {"imports": core.imports, "form": f"#@title Hyperparameters\n{core.form}\n\n\n{config}"}
    parts |= {name: joined(core.code[name]) for name in BEFORE}
    _, *sections = re.split(r"^# ---- (.*?) -+\n", f"\n{rest}\n", flags=re.MULTILINE)
    parts |= {title: code.strip("\n") for title, code in zip(sections[::2], sections[1::2], strict=True)}
    cells = []
    for number, text in enumerate(re.split(r"^```python\n(.*?)^```$", template, flags=re.MULTILINE | re.DOTALL)):
        name = text.strip("{}\n")
        content = parts.pop(name, text).strip("\n").splitlines(keepends=True)
        about: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": content}
        about |= {"execution_count": None, "outputs": []} if number % 2 else {}
        cells.append({"cell_type": "code" if number % 2 else "markdown"} | about)
    if parts:
        raise UserError(f"notebook.md leaves out {', '.join(parts)}; give each a block, such as {{{min(parts)}}}")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"accelerator": "GPU", "colab": {"provenance": []}, "kernelspec": kernel}
    book = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=0, ensure_ascii=False) + "\n"


def texts(root: Path) -> dict[str, str]:
    """Names and texts of the two files, made from the four in the folder `root`."""
    core, template = take_apart(root), Path(__file__).with_name("notebook.md").read_text(encoding="utf-8")
    return {CELL: cell(core), NOTEBOOK: notebook(core, template)}


@exits_with_one_line
def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` are sys.argv's without the program. Returns the exit code."""
    parser = Parser(description="Write colab_cell.py and davidnet.ipynb from the four files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one of them is stale")
    check = parser.parse_args(arguments).check
    made = texts(ROOT)
    stale = [name for name, text in made.items() if not _is(ROOT / name, text)]
    if check and stale:
        verb = "are" if len(stale) > 1 else "is"
        print(f"{' and '.join(stale)} {verb} not what the four files make; run python -m lab notebook", file=sys.stderr)
        return Exit.NO
    for name in stale:
        write_whole(ROOT / name, made[name])
    print(f"{'wrote' if stale else 'up to date:'} {', '.join(stale or made)}")
    return Exit.DONE


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text
