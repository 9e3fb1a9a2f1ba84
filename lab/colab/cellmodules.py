"""Imports modules whose code stands in a notebook's cells; notebook.py puts this one in front of them."""

import importlib
import importlib.abc
import importlib.util
import linecache
import sys
from importlib.machinery import ModuleSpec
from typing import Any


class CellModules(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Lets modules be imported whose code is not in files.

    Tracebacks show their lines, and TensorFlow's AutoGraph, which needs a function's source, finds it.
    """

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        sys.meta_path.insert(0, self)

    def add(self, name: str, source: str) -> None:
        """The code of a module, to be run when it is imported."""
        self.sources[name] = source
        linecache.cache.pop(self.get_filename(name), None)
        sys.modules.pop(name, None)

    def run(self, name: str, source: str) -> None:
        """Runs the code as a module; what was imported from it before stays the same module."""
        before = sys.modules.get(name)
        self.add(name, source)
        if before is not None and getattr(before, "__loader__", None) is self:
            sys.modules[name] = before
            importlib.reload(before)
        else:
            importlib.import_module(name)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in self.sources else None

    def is_package(self, fullname: str) -> bool:
        return False

    def get_filename(self, fullname: str) -> str:
        return f"{fullname}.py in the notebook"

    def get_source(self, fullname: str) -> str:
        return self.sources[fullname]
