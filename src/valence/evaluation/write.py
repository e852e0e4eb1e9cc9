"""Everything that a run writes about its policy: samples.jsonl, the model card and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valence.evaluation.images import ImageEvaluation
from valence.evaluation.report import FIGURES_HEAD, figures_table, write_report
from valence.evaluation.samples import Evaluation

LOAD = """
To draw images as in the run (diffusers' own defaults of steps and guidance draw others):

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}", safety_checker=None)
{adapters}images = pipeline(["{prompt}"], {sampling}).images
```
"""


def figures_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The figures of each evaluation among the lines of a metrics.jsonl."""
    found = ({key[5:]: value for key, value in row.items() if key.startswith("eval/")} for row in rows)
    return [figures for figures in found if figures]


def write_run(
    out: Path, facts: Mapping[str, str], rows: Sequence[Mapping[str, Any]], evaluation: Evaluation | ImageEvaluation,
    section: str,
) -> None:  # fmt: skip
    """Write all three; see `write_report`."""
    figures, samples = figures_of(rows), evaluation.samples()
    if samples:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in samples]
        (out / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    write_model_card(out / "model", facts, figures[0], figures[-1], library=evaluation.card)
    write_report(out / "report.html", facts, rows, samples, figures[0], figures[-1], section=section)


def write_model_card(
    folder: Path, facts: Mapping[str, str], before: Mapping[str, float], after: Mapping[str, float], *,
    library: str = "transformers",
) -> None:  # fmt: skip
    """Write `folder/README.md`: model, method, feedback, and the figures before and after.

    Args:
        facts: settings of the run by name. For diffusers also "folder" (of the initial pipeline), "learned"
            ("adapters" or another text), "a prompt" and "sampled with" (arguments of the pipeline's call).
        library: what loads the model: "transformers" or "diffusers".
    """
    lines = ["---", f"library_name: {library}", "tags: [valence, alignment]", "---", "", "# Aligned with Valence", ""]
    lines += [f"- **{name}**: {value}" for name, value in facts.items()]
    table = [FIGURES_HEAD, ("---",) * len(FIGURES_HEAD), *figures_table(before, after)]
    lines += ["", *(f"| {' | '.join(row)} |" for row in table)]
    if library == "diffusers":
        adapters = facts["learned"] == "adapters"
        load = LOAD.format(
            folder=facts["folder"] if adapters else ".", prompt=facts["a prompt"], sampling=facts["sampled with"],
            adapters='pipeline.load_lora_weights(".")\n' if adapters else "",
        )  # fmt: skip
        lines.append(load)
    (folder / "README.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
