"""The pairwise judge against a real OpenAI-compatible server on loopback: `transformers serve`, a process of its own.

The carried small model never learned to judge: its answers are text, and hardly ever a verdict. Where verdicts are
needed a tiny model is trained on the spot to say one: A where the second answer does not end in an ASCII letter or
sign, B where it does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import load_file

from valence.errors import UserError
from valence.policies.loading import carried
from valence.rewards import http_judge
from valence.rewards.http_judge import PairJudge
from valence.rewards.judge import SelfPlay
from valence.rewards.loading import load_reward
from valence.runs.improve_language import improve

ABSENT = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"transformers serve needs {', '.join(ABSENT)}: make venv"),
]

TEMPLATE = "{prompt}|{first}|{second}|"
LETTERS = [chr(code) for code in range(32, 127)] + ["\ufffd"] * 95
"""What a model of random weights writes: ASCII, and bytes that are no text."""


class Server:
    """`transformers serve` on a free port, which it keeps; any folder is a model's name."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log, self.process = log, None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1",
            "--port", str(self.port), "--device", "cpu",
        ]  # fmt: skip
        alone = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=os.environ | alone, stdout=log, stderr=log)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5).ok:
                    return
            except requests.ConnectionError:
                time.sleep(0.1)
        self.kill()
        raise AssertionError(f"transformers serve did not start: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """At once, as a machine that goes down."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("serve") / "log")
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The carried model with the least of chat templates, for it has none."""
    folder = tmp_path_factory.mktemp("models") / "small-lm"
    shutil.copytree(carried("small-lm"), folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1]['content'] }}")
    return folder


@pytest.fixture(scope="module")
def clear(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers A or B."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    draw, folder = random.Random(0), tmp_path_factory.mktemp("models") / "clear"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{{ bos_token }}{{ messages[-1]['content'] }}"
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        texts, wanted = [], []
        for _ in range(32):
            first, second = ("".join(draw.choices(LETTERS, k=draw.randrange(7))) for _ in range(2))
            texts.append(f"p{draw.randrange(20)}|{first}|{second}|")
            wanted.append("B" if second and second[-1].isascii() else "A")
        rows = [
            [*tokenizer(text + word)["input_ids"], tokenizer.eos_token_id]
            for text, word in zip(texts, wanted, strict=True)
        ]
        ids = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        labels = torch.full_like(ids["input_ids"], -100)
        for place, row in enumerate(rows):
            labels[place, len(row) - 2 : len(row)] = torch.tensor(row[-2:])
        loss = model(**ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def kept(path: Path) -> dict[str, str]:
    with sqlite3.connect(path) as base:
        found = dict(base.execute("SELECT question, text FROM answer").fetchall())
    base.close()
    return found


def test_the_small_model_answers_and_is_asked_once(server: Server, small: Path, tmp_path: Path) -> None:
    """Its greedy words, the same as from a model that we load ourselves; a rerun goes without any server."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pairs = (["What is a film?"] * 3, ["a story", "it", "no"], ["good", "a good film", "yes"])
    name, cache = f"judge:{small}@{server.url}", tmp_path / "judge.sqlite"
    unended = "{prompt} {first} or {second}? I think that the"
    reward = load_reward(name, cache=cache, template=unended)
    assert isinstance(reward, SelfPlay)
    verdicts = reward.judge(*pairs)
    answers = kept(cache)
    assert len(answers) == 6 and all(text.strip() for text in answers.values())
    assert verdicts == [None] * 3
    model, tokenizer = AutoModelForCausalLM.from_pretrained(small), AutoTokenizer.from_pretrained(small)
    question = reward.judge._question(*(column[0] for column in pairs))
    ids = tokenizer(f"{tokenizer.bos_token}{question}", return_tensors="pt", add_special_tokens=False)["input_ids"]
    ours = model.generate(ids, do_sample=False, max_new_tokens=16)[0, ids.shape[1] :]
    assert tokenizer.decode(ours, skip_special_tokens=True) in answers.values()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        again = PairJudge(str(small), nowhere, template=unended, cache=cache)
        assert again(*pairs) == verdicts


def test_a_server_killed_in_mid_run_loses_nothing(
    server: Server, clear: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two answers about one batch: the run waits, stops with a checkpoint, goes on when the server is
    back, asks only what is not stored, and ends with the weights of a run without any of that."""
    monkeypatch.setattr(http_judge, "PATIENCE", 1.5)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(12)))
    asking, asked, calls, fatal = threading.Lock(), [0], list[int](), [-1]
    ask, play = PairJudge._ask, SelfPlay.__call__

    def counted(self: PairJudge, question: str) -> str:
        with asking:
            asked[0] += 1
            if asked[0] == fatal[0]:
                server.kill()
        return ask(self, question)

    def noted(self: SelfPlay, *rows: Any, **columns: Any) -> list[float | None]:
        calls.append(asked[0])
        return play(self, *rows, **columns)

    monkeypatch.setattr(PairJudge, "_ask", counted)
    monkeypatch.setattr(SelfPlay, "__call__", noted)

    def go(name: str, **more: Any) -> Any:
        asked[0] = 0
        calls.clear()
        return improve(
            prompts, model=tiny_llama, out=tmp_path / name, reward=f"judge:{clear}@{server.url}", method="spo",
            judge_template=TEMPLATE, max_steps=3, num_epochs=1, batch_size=4, num_samples=2, max_new_tokens=6,
            lr=1e-2, eval_every=0, eval_samples=4, save_every=100, tracker="none", quiet=True, **more,
        )  # fmt: skip

    whole = go("whole")
    answers = kept(tmp_path / "whole" / "judge.sqlite")
    assert set(answers.values()) == {"A", "B"} and len(answers) == asked[0]
    asking_calls = [begun for begun, ended in zip(calls, [*calls[1:], asked[0]], strict=True) if ended > begun]
    assert len(asking_calls) >= 3
    fatal[0] = asking_calls[1] + 3
    with pytest.raises(UserError, match=r"gave no answer for 1.5 s .*`resume=True`.*step-00000001"):
        go("broken")
    stored = kept(tmp_path / "broken" / "judge.sqlite")
    assert stored.items() < answers.items()
    fatal[0] = -1
    server.start()
    rest = go("broken", resume=True)
    assert rest.steps == 3 and asked[0] == len(answers) - len(stored)
    assert kept(tmp_path / "broken" / "judge.sqlite") == answers
    ours, theirs = (load_file(run.model / "model.safetensors") for run in (rest, whole))
    assert all(torch.equal(ours[name], part) for name, part in theirs.items())
