"""The review sentences: three parts without a common sentence, and a judge that has learned sentiment."""

from __future__ import annotations

from functools import cache

from valence.rewards.sentences import Halves, SentenceJudge, read_sentences, split_sentences


@cache
def parts() -> Halves:
    return split_sentences(read_sentences())


def test_the_three_parts_share_no_sentence() -> None:
    judge, feedback, heldout = ({row["completion"] for row in part} for part in parts())
    assert not judge & feedback
    assert not judge & heldout
    assert not feedback & heldout
    assert len(parts().heldout) == 1057
    assert abs(len(parts().judge) - len(parts().feedback)) < 100


def test_the_judge_knows_sentiment_and_has_not_seen_the_heldout() -> None:
    judge = SentenceJudge(parts().judge)
    assert judge.accuracy(parts().heldout) > 0.7
    assert judge.positive(["a warm , funny and moving film"]) == 1
    assert judge.positive(["a dull , lifeless and pointless mess"]) == 0
