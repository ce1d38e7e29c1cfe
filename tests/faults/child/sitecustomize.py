"""Python runs this file at its start where its folder is on PYTHONPATH: loads disabled.py, which lies one up."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("disabled_in_child", Path(__file__).parent.parent / "disabled.py")
assert _spec is not None
assert _spec.loader is not None
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))
