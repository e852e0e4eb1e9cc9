"""Two models side by side: whose completions of the same prompts are better."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from jinja2 import TemplateError

from valence.data.collate import Encoder
from valence.data.formats import load_feedback
from valence.data.records import Record
from valence.errors import UserError
from valence.evaluation.language import sample_texts
from valence.evaluation.win_rate import WinRate, win_rate
from valence.rewards import load_reward
from valence.runs.config import ModelConfig, check_numbers, parse_columns
from valence.runs.data import Say, say_problems
from valence.runs.session import load_policy
from valence.sources.prompts import EncodedPrompt, plain_prompt, verdicts

STYLE = (
    "body{font:15px/1.5 system-ui;margin:2rem} td,th{border-bottom:1px solid #ddd;padding:.4rem;text-align:left;"
    "vertical-align:top;white-space:pre-wrap}"
)


@dataclass(frozen=True)
class CompareConfig:
    """One comparison."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Two models: folders that transformers can load, hub ids, or small-lm."""
    prompts: str = ""
    """File of prompts; other columns go to the judge."""
    judge: str = ""
    """judge:MODEL@URL, or any reward of valence improve: the completion with the higher one is better."""
    out: str = ""
    """Folder to write into."""
    judge_template: str = "helpful"
    """judge: helpful, summary, or a text with {prompt}, {first} and {second}."""
    columns: str | None = None
    """Names of your columns, such as prompt=question."""
    max_prompts: int = 200
    """Prompts taken, at most: a random part of the file."""
    max_new_tokens: int = 64
    """Longest completion."""
    max_length: int = 1024
    """Longest prompt, in tokens; longer ones are left out, with a count."""
    temperature: float = 1.0
    """Of sampling."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    seed: int = 0
    """Of prompts and samples."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""

    def __post_init__(self) -> None:
        check_numbers(self, "max_prompts", "max_new_tokens", least=1)
        check_numbers(self, "max_length", least=2)
        check_numbers(self, "temperature", above=0)
        check_numbers(self, "seed", "threads", least=0)


def compare(config: CompareConfig, *, say: Say = print) -> WinRate:
    """Sample from both, judge, and write results.json, samples.jsonl and compare.html.

    Raises:
        UserError: bad input, in one line; or no completion could be judged.
    """
    missing = [name for name in ("models", "prompts", "judge", "out") if not getattr(config, name)]
    if missing or len(config.models) != 2:
        said = f"{', '.join(missing)} missing" if missing else f"{len(config.models)} models given"
        raise UserError(f"{said}: valence compare MODEL MODEL --prompts FILE --judge J --out DIR")
    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    if (out / "results.json").exists():
        raise UserError(f"{out} already holds a comparison: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    judge = load_reward(
        config.judge, device=device, kept=out / "judge.sqlite", template=config.judge_template, option="--judge"
    )
    loaded = load_feedback([config.prompts], columns=parse_columns(config.columns))
    say_problems(loaded.problems, say)
    order = torch.randperm(len(loaded.records), generator=torch.Generator().manual_seed(config.seed)).tolist()
    records = [loaded.records[place] for place in order[: config.max_prompts]]
    texts, kept = _completions(config, records, say)
    rows = [EncodedPrompt([], records[place].prompt, records[place].columns) for place in sorted(kept)]
    first, second = ([part[place] for place in sorted(kept)] for part in texts)
    said = verdicts(judge, rows, first, second)
    known = [place for place, verdict in enumerate(said) if verdict is not None]
    if not known:
        raise UserError(f"{config.judge} judged none of the {len(rows)} pairs")
    if len(known) < len(rows):
        say(f"{len(rows) - len(known):,} pairs had no clear verdict and are left out")
    lengths = [(len(first[place].split()), len(second[place].split())) for place in known]
    found = win_rate([float(said[place] or 0.0) for place in known], lengths)
    samples = [
        {"prompt": plain_prompt(rows[place]), "first": first[place], "second": second[place], "verdict": said[place]}
        for place in known
    ]  # fmt: skip
    _write(out, config, found, samples)
    control = "" if found.length_controlled is None else f", {found.length_controlled:.1%} at equal length"
    say(
        f"{config.models[0]} beats {config.models[1]}: {found.rate:.1%} [{found.low:.1%}, {found.high:.1%}] of "
        f"{found.judged:,}, ties {found.ties:.1%}{control}\nwritten: {out}/compare.html, results.json, samples.jsonl"
    )
    return found


def _completions(config: CompareConfig, records: list[Record], say: Say) -> tuple[list[list[str]], set[int]]:
    """(each model's completion of every prompt, places of the prompts that both could be given).

    Raises:
        UserError: no prompt is left.
    """
    texts, kept = [], set(range(len(records)))
    for model in config.models:
        policy = load_policy(model, ModelConfig(device=config.device, temperature=config.temperature))
        policy.max_new_tokens = config.max_new_tokens
        encoder = Encoder(policy.tokenizer, encoder_decoder=policy.encoder_decoder, max_length=config.max_length)
        ids = [_prompt(encoder, record) for record in records]
        positions = getattr(policy.core.config, "max_position_embeddings", None) or config.max_length
        room = min(config.max_length, positions - (0 if policy.encoder_decoder else config.max_new_tokens))
        if room < 1:
            raise UserError(
                f"--max-new-tokens {config.max_new_tokens} leaves {model} no room: it has {positions} positions"
            )
        kept &= {place for place, row in enumerate(ids) if row is not None and len(row) <= room}
        short = [(row or [policy.pad_token_id])[:room] for row in ids]
        texts.append(sample_texts(policy, short, seed=config.seed, pad=policy.pad_token_id)[0])
        say(f"{model}: {len(records)} completions")
    if len(kept) < len(records):
        say(f"{len(records) - len(kept):,} prompts are too long, or refused by a chat template, and were left out")
    if not kept:
        raise UserError(
            f"none of the {len(records):,} prompts can be given to both models: shorten them, or --max-new-tokens"
        )
    return texts, kept


def _prompt(encoder: Encoder, record: Record) -> list[int] | None:
    """Its token ids; None where the model's template refuses it."""
    try:
        return encoder.prompt(record.prompt)
    except TemplateError:
        return None


def _write(out: Path, config: CompareConfig, found: WinRate, samples: list[dict[str, Any]]) -> None:
    (out / "results.json").write_text(json.dumps({"config": asdict(config), "result": asdict(found)}, indent=1) + "\n")
    (out / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row[name]))}</td>" for name in ("prompt", "first", "second", "verdict"))
        + "</tr>\n"
        for row in samples[:100]
    )  # fmt: skip
    one, two = (html.escape(model) for model in config.models)
    told = f"{found.rate:.1%} [{found.low:.1%}, {found.high:.1%}] of {found.judged}, ties {found.ties:.1%}"
    (out / "compare.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>valence compare</title><style>{STYLE}</style>"
        f"<h1>{one} against {two}</h1><p>{told}, judged by {html.escape(config.judge)}.</p>"
        f"<table><tr><th>prompt<th>{one}<th>{two}<th>P(first better)</tr>{cells}</table>\n",
        encoding="utf-8",
    )
