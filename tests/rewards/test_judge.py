"""The pairwise judge against a server on loopback: swaps, ties, cache, retries, and a server that dies."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from valence.errors import UserError
from valence.rewards import http_judge
from valence.rewards.http_judge import PairJudge, parse_verdict
from valence.rewards.judge import PairFunction, SelfPlay
from valence.rewards.loading import load_reward


class Server:
    """Speaks the interface; `answer` decides, `statuses` come first."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.statuses: list[int] = []
        self.answer: Any = longer
        self.port, self.http = 0, None

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.seen.append(body)
                owner.headers.append(self.headers["Authorization"])
                status = owner.statuses.pop(0) if owner.statuses else 200
                content = owner.answer(body["messages"][0]["content"])
                reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def answers(question: str) -> tuple[str, str]:
    first = question.split("Answer A:\n")[1].split("\n\nAnswer B:")[0]
    return first, question.split("Answer B:\n")[1].split("\n\nReply")[0]


def longer(question: str) -> str:
    first, second = answers(question)
    return "TIE" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("A", 1.0), ("b", 0.0), (" tie.", 0.5), ("I prefer B", 0.0), ("", None), ("**A**", 1.0), ("hm", None),
        # A sentence that names both says nothing by its last letter; one that closes with a verdict does.
        ("A is better than B.", None), ("B is better than A", None), ("A or B? I cannot tell", None),
        ("A is longer, B is right.\nB", 0.0), ("A beats B. Answer: A.", 1.0), ("neither A nor B\nTIE", 0.5),
    ],
)  # fmt: skip
def test_verdicts_are_read_off_answers(answer: str, said: float | None) -> None:
    assert parse_verdict(answer) == said


def test_both_orders_are_asked_and_averaged(server: Server) -> None:
    judge = PairJudge("m", server.url)
    assert judge(["p", "p", "q"], ["long one", "s", "same"], ["short", "longer", "also"]) == [1.0, 0.0, 0.5]
    assert len(server.seen) == 6 and server.seen[0]["model"] == "m" and server.seen[0]["temperature"] == 0.0
    # One that always takes what stands first says nothing; one that is clear in one order counts by that.
    server.answer = lambda question: "A"
    assert PairJudge("m", server.url)(["p"], ["x"], ["yy"]) == [0.5]
    server.answer = lambda question: "A" if answers(question)[0] == "x" else "hm"
    half = PairJudge("m", server.url)
    assert half(["p"], ["x"], ["yy"]) == [1.0]
    server.answer = lambda question: "who knows"
    assert PairJudge("m", server.url)(["p"], ["x"], ["yy"]) == [None]


def test_the_key_comes_from_the_environment_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    PairJudge("m", server.url)(["p"], ["x"], ["yy"])
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    PairJudge("m", server.url)(["p"], ["x"], ["yy"])
    assert server.headers == [None, None, "Bearer secret", "Bearer secret"]


def test_what_was_asked_once_costs_nothing_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = (["p", "q"], ["a {prompt}", "bb"], ["ccc", "d"])
    first = PairJudge("m", server.url, cache=tmp_path / "kept" / "judge.sqlite")
    expected = first(*pairs)
    server.stop()
    again = PairJudge("m", "http://127.0.0.1:9/v1", cache=tmp_path / "kept" / "judge.sqlite")
    assert again(*pairs) == expected
    # Another model's answers are others; braces in completions are text.
    assert sum("a {prompt}" in body["messages"][0]["content"] for body in server.seen) == 2
    monkeypatch.setattr(http_judge, "PATIENCE", 0.1)
    with pytest.raises(UserError, match="gave no answer"):
        PairJudge("n", "http://127.0.0.1:9/v1", cache=tmp_path / "kept" / "judge.sqlite")(*pairs)


def test_a_busy_server_is_asked_again_and_a_refusal_is_said(server: Server) -> None:
    server.statuses = [503, 429]
    judge = PairJudge("m", server.url)
    assert judge(["p"], ["xx"], ["y"]) == [1.0] and len(server.seen) == 4
    server.statuses = [401]
    with pytest.raises(UserError, match=r"rejects the request: it answers 401"):
        PairJudge("m", server.url)(["p"], ["xx"], ["y"])


def test_a_server_that_comes_back_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_judge, "PATIENCE", 20.0)
    server.stop()
    threading.Timer(0.8, server.start).start()
    assert PairJudge("m", server.url)(["p"], ["xx"], ["y"]) == [1.0]


def test_how_completions_fare_among_themselves(server: Server) -> None:
    """Lengths 1, 2, 3 of one prompt: wins of 0, 1 and 2 of two: (0 - 2)/3, 0, 2/3; alone there is no verdict."""
    reward = SelfPlay(PairJudge("m", server.url))
    found = reward(["p", "p", "p", "q"], ["x", "xx", "xxx", "y"])
    assert found[:3] == pytest.approx([-2 / 3, 0.0, 2 / 3]) and found[3] is None
    assert reward.failures == {"no clear verdict": 1}


def test_a_template_without_its_places_is_refused() -> None:
    with pytest.raises(UserError, match="or a text with"):
        PairJudge("m", "http://x", template="which is better?")


def test_a_function_of_pairs_by_its_name(tmp_path: Path) -> None:
    """Of r, r, p, s: r ties with itself and the other, loses to p, beats s; p beats both r and loses to s."""
    (tmp_path / "ring.py").write_text(
        "def judge(prompts, first, second):\n"
        "    beats = {'pr', 'sp', 'rs'}\n"
        "    return [0.5 if a == b else float(a + b in beats) for a, b in zip(first, second)]\n"
    )
    reward = load_reward(f"pairwise:{tmp_path}/ring.py:judge")
    assert isinstance(reward, SelfPlay) and reward.name.startswith("pairwise:")
    assert reward(["q"] * 4, ["r", "r", "p", "s"]) == pytest.approx([0.0, 0.0, 0.25, -0.25]) and not reward.failures


def test_a_function_of_pairs_that_fails_costs_the_pairs_it_failed_on() -> None:
    def moody(prompts: list[str], first: list[str], second: list[str]) -> list[float | None]:
        if "bad" in first:
            raise ZeroDivisionError("no")
        return [3.0 if text == "three" else None if text == "none" else 1.0 for text in second]

    judge = PairFunction(moody)
    assert judge(["p"] * 4, ["a", "bad", "c", "d"], ["x", "y", "three", "none"]) == [1.0, None, None, None]
    assert judge.failures == {
        "ZeroDivisionError: no": 1, "ValueError: 3.0 is no probability that the first is better": 1,
        "no finite number": 1,
    }  # fmt: skip
    assert judge([], [], []) == []
    reward = SelfPlay(judge)
    assert reward(["p", "p", "q", "q"], ["bad", "b", "c", "d"]) == [None, None, 0.5, -0.5]
    assert list(reward.failures.values()) == [2] and "2 pairs: ZeroDivisionError: no" in next(iter(reward.failures))
    with pytest.raises(UserError, match=r"judged none of the first 1 completions: ValueError: 3.0 is no probability"):
        PairFunction(moody)(["p"], ["a"], ["three"])
