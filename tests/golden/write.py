"""Writes the resolved text of every file in configs/ beside this script, for review in a diff."""

import json
from pathlib import Path

from empathax.config import to_dict
from empathax.config.flags import load_config

HERE = Path(__file__).parent

for path in sorted((HERE.parent.parent / "configs").glob("*.py")):
    config, _ = load_config([f"--config={path}"])
    (HERE / f"{path.stem}.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
