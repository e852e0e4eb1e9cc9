"""How plain prompts meet an instruct model and a base model, in every command that encodes prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from valence.cli.main import main
from valence.data.prompting import Prompting
from valence.errors import UserError
from valence.policies.language import LanguagePolicy
from valence.runs.align import AlignConfig, align
from valence.runs.compare import CompareConfig, run_comparison
from valence.runs.improve_language import ImproveConfig, improve
from valence.runs.language import prompting_of
from valence.runs.options import DataOptions, PromptOptions
from valence.runs.reward_model import RewardModelConfig
from valence.runs.settings import configure, to_words

QUICK: dict[str, Any] = {
    "max_steps": 1, "batch_size": 4, "eval_every": 0, "eval_samples": 2, "max_new_tokens": 4, "tracker": "none",
    "save_every": 0,
}  # fmt: skip
TEMPLATE = (
    "{% for turn in messages %}<s>{{ turn['role'] }}\n{{ turn['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CHAT = "plain prompts go through the model's chat template; {} uses them as they are"


def templated(prompt: str, system: str = "") -> str:
    return f"{f'<s>system{chr(10)}{system}</s>' * bool(system)}<s>user\n{prompt}</s><s>assistant\n"


@pytest.fixture(scope="session")
def chat_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def thumbs(tmp_path: Path) -> str:
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n % 2 == 0} for n in range(8)]
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each context that is sampled from."""
    seen: list[str] = []
    draw = LanguagePolicy.sample

    def spy(self: LanguagePolicy, context: Any, *rest: Any, **options: Any) -> Any:
        rows = zip(context.ids, context.mask, strict=True)
        seen.extend(self.tokenizer.decode(ids[mask].tolist()) for ids, mask in rows)
        return draw(self, context, *rest, **options)

    monkeypatch.setattr(LanguagePolicy, "sample", spy)
    return seen


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text of each prompt with its completion that log pi is measured of."""
    seen: list[str] = []
    measure = LanguagePolicy.likelihood_and_backward

    def spy(self: LanguagePolicy, batch: Any, *rest: Any, **options: Any) -> Any:
        for n, (ids, mask) in enumerate(zip(batch.context.ids, batch.context.mask, strict=True)):
            steps = torch.cat([ids[mask], batch.action.steps[n, 0][batch.action.mask[n, 0]]])
            seen.append(self.tokenizer.decode(steps.tolist()))
        return measure(self, batch, *rest, **options)

    monkeypatch.setattr(LanguagePolicy, "likelihood_and_backward", spy)
    return seen


def test_align_trains_and_samples_through_the_template(
    thumbs: str, chat_llama: Path, tmp_path: Path, sampled: list[str], measured: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    align(thumbs, model=chat_llama, out=out, method="supervised", eval_fraction=0, system="s", **QUICK)
    assert capsys.readouterr().out.splitlines().count(CHAT.format("`chat_template=False`")) == 1
    prompts = {templated(f"p{n}", "s") for n in range(8)}
    assert sampled and set(sampled) <= prompts
    assert measured and {text.removesuffix("</s>")[:-2] for text in measured} <= prompts
    assert all(text.endswith("</s>") and text[-5] == text.partition("user\np")[2][0] for text in measured)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, templated("p{}")), ({"system": "s"}, templated("p{}", "s")), ({"chat_template": False}, "<s>p{}")],
    ids=str,
)
def test_improve_samples_and_evaluates_through_the_template(
    options: dict[str, Any], expected: str, thumbs: str, chat_llama: Path, tmp_path: Path, sampled: list[str]
) -> None:
    given = {"model": chat_llama, "out": tmp_path / "out", "reward": "length", "quiet": True} | QUICK | options
    improve(thumbs, **given)
    assert sampled and set(sampled) <= {expected.format(n) for n in range(8)}


def test_compare_asks_each_model_in_its_own_form(
    thumbs: str, chat_llama: Path, tiny_llama: Path, tmp_path: Path, sampled: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    values: dict[str, Any] = {"models": [chat_llama, tiny_llama], "prompts": thumbs, "out": tmp_path / "out"}
    values |= {"judge": "length", "max_new_tokens": 2}
    run_comparison(configure(CompareConfig, *to_words(CompareConfig, values)))
    assert set(sampled[:8]) == {templated(f"p{n}") for n in range(8)}
    assert set(sampled[8:]) == {f"<s>p{n}\n" for n in range(8)}
    lines = capsys.readouterr().out.splitlines()
    assert f"{chat_llama}: {CHAT.format('`chat_template=False`')}" in lines
    assert any(line.startswith(f"{tiny_llama}: a newline was put between") for line in lines)


def test_a_base_model_gets_a_newline_or_what_is_asked_for(
    thumbs: str, tiny_llama: Path, tmp_path: Path, sampled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [thumbs, "--model", str(tiny_llama), "--method", "supervised", "--eval-fraction", "0"]
    for name, value in QUICK.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    told = "a newline was put between prompt and completion of 4 of 4 plain-text rows"
    for number, (separator, expected) in enumerate(((None, "\n"), ("", ""), (r"\n\n", "\n\n"), (": ", ": "))):
        sampled.clear()
        more = [] if separator is None else ["--separator", separator]
        main(["align", *words, "--out", str(tmp_path / str(number)), *more])
        assert sampled and set(sampled) <= {f"<s>p{n}{expected}" for n in range(8)}
        printed = capsys.readouterr().out
        assert (told in printed and '--separator takes another text, and --separator "" none' in printed) == (not more)
    main(["align", *words, "--out", str(tmp_path / "last"), "--max-length", "6"])
    # <s>, two of the prompt, the newline, two of the completion, and the end that is cut.
    printed = capsys.readouterr().out
    assert "--max-length 6 cuts 100% of the rows; the longest has 7 tokens" in printed


def test_the_command_line_switches_the_template_off_without_a_double_negative(
    thumbs: str, chat_llama: Path, tmp_path: Path, sampled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("align", "improve", "compare", "reward-model"):
        main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert " --chat-template, --no-chat-template " in shown
        assert "Without the template, plain prompts go to a chat model as they are. (on)" in shown
    values = [thumbs, "--model", str(chat_llama), "--reward", "length", "--max-steps", "1", "--eval-samples", "2"]
    values += ["--batch-size", "4", "--max-new-tokens", "2", "--tracker", "none", "--eval-every", "0"]
    main(["improve", *values, "--out", str(tmp_path / "a")])
    assert CHAT.format("--no-chat-template") in capsys.readouterr().out
    sampled.clear()
    main(["improve", *values, "--out", str(tmp_path / "b"), "--no-chat-template"])
    assert "plain prompts are used as they are" in capsys.readouterr().out
    assert set(sampled) <= {f"<s>p{n}" for n in range(8)}


@pytest.mark.parametrize("kind", [AlignConfig, ImproveConfig, CompareConfig, RewardModelConfig])
def test_every_command_that_encodes_prompts_has_the_options(kind: Any) -> None:
    parts = [part for part in vars(kind()).values() if isinstance(part, PromptOptions)]
    assert [prompting_of(part) for part in parts] == [Prompting()]


def test_a_system_message_that_cannot_be_read_is_one_line(
    thumbs: str, tiny_llama: Path, chat_llama: Path, tmp_path: Path
) -> None:
    for run in (
        lambda: align(thumbs, model=tiny_llama, out=tmp_path / "a", quiet=True, system="s"),
        lambda: improve(thumbs, model=tiny_llama, out=tmp_path / "b", reward="length", quiet=True, system="s"),
    ):
        with pytest.raises(UserError, match=r"^`system` needs a chat template, and .* has none: leave it out, or put"):
            run()
    with pytest.raises(UserError, match=r"^`system` is 's', and must be left out with `chat_template=False`"):
        align(thumbs, model=chat_llama, out=tmp_path / "c", quiet=True, system="s", chat_template=False)


def test_a_shells_backslashes_are_newlines_and_tabs() -> None:
    assert prompting_of(DataOptions(separator=r"\n\t")).separator == "\n\t"
    assert prompting_of(DataOptions(separator="")).separator == ""
    assert prompting_of(DataOptions()).separator is None
