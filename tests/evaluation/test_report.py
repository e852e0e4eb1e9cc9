"""The page and the card: all there, nothing that runs, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from valence.evaluation.pictures import png
from valence.evaluation.report import CURVES, curves_figure, write_comparison, write_report
from valence.evaluation.statistics import win_rate
from valence.evaluation.write import write_model_card

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""
ROWS = [
    {"step": 0, "eval/kl_policy_ref": 0.0, "eval/kl_ref_policy": 0.0, "eval/implicit_reward_accuracy": 0.5},
    {"step": 1, "loss": 0.7, "accepted_drift": 0.1, "tokens_per_second": 100.0},
    {"step": 2, "loss": 0.6},
    {"step": 2, "eval/kl_policy_ref": 0.2, "eval/kl_ref_policy": 0.1, "eval/implicit_reward_accuracy": 0.8},
]


class Page(HTMLParser):
    """Its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def write(path: Path, **changes: object) -> str:
    given: dict[str, object] = {
        "facts": {"method": "pmpo", "feedback": "rows.jsonl", "model": "small-lm"},
        "rows": ROWS[1:2],
        "samples": [{"prompt": "p", "before": "b", "after": "a"}],
        "before": {"kl_policy_ref": 0.0, "mean_words": 3.0},
        "after": {"kl_policy_ref": 0.25, "mean_words": 4.5, "distinct_2": 0.125},
    } | changes
    write_report(path, **given)  # pyright: ignore[reportArgumentType]
    return path.read_text(encoding="utf-8")


def test_model_text_cannot_run_anything(tmp_path: Path) -> None:
    text = write(
        tmp_path / "report.html",
        facts={"method": EVIL, "feedback": EVIL, EVIL: EVIL},
        samples=[{"prompt": EVIL, "before": EVIL, "after": EVIL}],
        before={EVIL: 1.0},
        after={EVIL: 2.0},
    )
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags and "<script" not in text.lower()
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    # It is shown as it was written: in the title, three facts, three samples and a measure.
    assert "".join(page.words).count(EVIL) == 2 + 4 + 3 + 1


def test_the_page_is_alone_in_the_world(tmp_path: Path) -> None:
    text = write(tmp_path / "report.html")
    page = Page(text)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 and images[0] is not None
    kind, _, data = images[0].partition("base64,")
    assert kind == "data:image/png;"
    picture = base64.b64decode(data)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and picture.rstrip().endswith(b"IEND\xaeB`\x82")
    rest = text.replace(data, "")
    assert not re.search(r"(https?:)?//|@import|url\(", rest)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_figures_before_and_after(tmp_path: Path) -> None:
    text = write(tmp_path / "report.html")
    assert re.search(r"mean_words.*?3\.0000.*?4\.5000", text)
    assert re.search(r"kl_policy_ref.*?0\.0000.*?0\.2500", text)
    assert re.search(r"distinct_2.*?nan.*?0\.1250", text), "a figure that there was not before is no number"


def test_only_so_many_samples_are_shown(tmp_path: Path) -> None:
    samples = [{"prompt": f"prompt-{n}", "before": "b", "after": "a"} for n in range(30)]
    text = write(tmp_path / "report.html", samples=samples)
    assert "prompt-23" in text and "prompt-24" not in text


def test_other_alphabets(tmp_path: Path) -> None:
    text = write(tmp_path / "report.html", samples=[{"prompt": "Žluťoučký 你好 🎈", "before": "ü", "after": "π"}])
    assert "Žluťoučký 你好 🎈" in text


@pytest.mark.parametrize("rows", [[], [{"step": 1}], ROWS[:1], [{"step": 1, "loss": float("nan")}]])
def test_curves_of_little_or_nothing(rows: list[dict[str, float]]) -> None:
    assert png(curves_figure(rows)).startswith(b"\x89PNG")


def test_each_plot_shows_its_metrics_by_step() -> None:
    plots = [axis for axis in curves_figure(ROWS).axes if axis.get_visible()]
    shown = {
        axis.get_title(): {
            str(line.get_label()): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axis.lines
        }
        for axis in plots
    }
    titles = {names[0]: title for title, names in CURVES}
    assert shown == {
        titles["loss"]: {"loss": [(1, 0.7), (2, 0.6)]},
        titles["eval/kl_policy_ref"]: {
            "kl policy ref": [(0, 0.0), (2, 0.2)], "kl ref policy": [(0, 0.0), (2, 0.1)],
        },
        titles["accepted_drift"]: {"accepted drift": [(1, 0.1)]},
        titles["eval/implicit_reward_accuracy"]: {"implicit reward accuracy": [(0, 0.5), (2, 0.8)]},
        titles["tokens_per_second"]: {"tokens per second": [(1, 100.0)]},
    }  # fmt: skip
    assert {axis.get_xlabel() for axis in plots} == {"step"}
    # A legend only where there are several lines.
    assert [axis.get_title() for axis in plots if axis.get_legend()] == [titles["eval/kl_policy_ref"]]


def test_a_comparison_shows_the_win_rate_and_the_first_hundred_pairs_escaped(tmp_path: Path) -> None:
    found = win_rate([1.0, 1.0, 0.5, 0.0], [(3, 1), (1, 3), (2, 2), (1, 1)])
    samples = [{"prompt": EVIL, "first": f"one-{n}.", "second": f"two-{n}.", "verdict": 0.5} for n in range(101)]
    write_comparison(tmp_path / "compare.html", EVIL, "other", "judge", found, samples)
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    tags, text = [tag for tag, _ in page.tags], "".join(page.words)
    assert tags.count("script") == tags.count("img") == 0 and tags.count("tr") == 101
    # The name of the first model stands in the title, the heading, the sentence and the table; the prompt in each row.
    assert text.count(EVIL) == 4 + 100
    assert f"{EVIL} beats other: 62.5% [" in text and "ties 25.0%" in text and "judged by judge." in text
    assert "one-99." in text and "two-99." in text and "one-100." not in text


def test_the_model_card(tmp_path: Path) -> None:
    write_model_card(
        tmp_path, {"method": "dro", "model": "small-lm"}, {"mean_words": 2.0}, {"mean_words": 3.25, "distinct_2": 0.5}
    )
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    head, body = text.split("---\n")[1:3]
    assert "library_name: transformers" in head
    assert "- **method**: dro" in body and "- **model**: small-lm" in body
    assert "| mean_words | 2.0000 | 3.2500 | words per sample |" in body
    assert "| distinct_2 | nan | 0.5000 | share of distinct word pairs in the samples |" in body
    assert "diffusers" not in text


def test_the_model_card_of_a_pipeline_says_how_to_draw(tmp_path: Path) -> None:
    facts = {"folder": "base/pipeline", "learned": "adapters", "a prompt": "a cat", "sampled with": "guidance_scale=1"}
    for learned, folder, adapters in (("adapters", "base/pipeline", True), ("the whole network", ".", False)):
        write_model_card(tmp_path, facts | {"learned": learned}, {}, {"reward": 1.0}, library="diffusers")
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert "library_name: diffusers" in text and "| reward | nan | 1.0000 | mean reward of the samples |" in text
        code = text.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        assert f'from_pretrained("{folder}"' in code and 'pipeline(["a cat"], guidance_scale=1)' in code
        assert ('load_lora_weights(".")' in code) is adapters
