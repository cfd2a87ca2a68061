"""Modules of the compressed-tensors library that need torch alone, without its package, whose import takes 4 s."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType


@functools.cache
def helpers(compressor: str) -> ModuleType:
    """Of a compressor, a folder of the library."""
    package = importlib.util.find_spec("compressed_tensors")
    assert package is not None and package.origin is not None  # it is in requirements.in
    path = Path(package.origin).parent / "compressors" / compressor / "helpers.py"
    spec = importlib.util.spec_from_file_location(f"{compressor}_helpers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
