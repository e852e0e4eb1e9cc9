"""Align the carried model with a handful of thumbs, from Python: `python examples/thumbs.py`."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp

from valence import align

THUMBS = [
    ("a moving , funny and beautifully acted film .", True),
    ("an instant classic , full of warmth and wit .", True),
    ("dull , lifeless and far too long .", False),
    ("a tired and pointless mess .", False),
]

if __name__ == "__main__":
    folder = Path(mkdtemp())
    rows = [{"prompt": "", "completion": text, "label": good} for text, good in THUMBS]
    (folder / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = align(folder / "thumbs.jsonl", model="small-lm", out=folder / "run", max_steps=10, eval_fraction=0)
    print(result.method, result.after, result.model)
