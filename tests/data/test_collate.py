"""From text to token ids to a batch: what is kept, what is cut, and that every cut is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from valence.data.collate import EncodedGroup, Encoder, collate, move, pad_actions, pad_feedback, pad_left
from valence.data.groups import Group
from valence.data.prompting import Prompting
from valence.data.records import Message
from valence.errors import UserError
from valence.types import Labels, Preferences, Rewards

WORDS = ("<pad>", "</s>", "<s>", "<unk>", "user", "assistant", "system", "a", "b", "c", "d", "e")
PAD, END, START, UNKNOWN, USER, ASSISTANT, SYSTEM, A, B, C, D, E = range(12)
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% if turn['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %} {{ turn['role'] }} {{ turn['content'] }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)


def tokenizer(*, before: str = "", after: str = "", start: bool = True, template: str | None = None) -> Any:
    """A word each; `before` and `after` are put around a text as the models' own tokenizers do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: place for place, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if before or after:
        made.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(),
            special_tokens=[(word, ids[word]) for word in {before, after} - {""}],
        )
    options = {"bos_token": "<s>"} if start else {}
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **options
    )
    found.chat_template = template
    return found


def group(prompt: Any = "a b", completions: Any = ("c", "d e"), **options: Any) -> Group:
    options = options or {"sign": (1,) * len(completions)}
    return Group(prompt, tuple(completions), file="rows.jsonl", line=7, **options)


def turns(*pairs: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(*pair) for pair in pairs)


class TestPlainText:
    def test_prompt_and_completions(self) -> None:
        encoded, problem = Encoder(tokenizer(before="<s>")).group(group())
        assert problem is None and encoded is not None
        assert encoded.prompt == [START, A, B]
        assert encoded.completions == [[C, END], [D, E, END]]
        assert encoded.num_tokens == (3 + 2) + (3 + 3)

    def test_separator_stands_between_but_not_without_a_prompt(self) -> None:
        encoder = Encoder(tokenizer(before="<s>"), Prompting(separator=" d"))
        assert encoder.prompt("a b") == [START, A, B, D]
        assert encoder.prompt("") == [START]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [({}, [START]), ({"before": "<s>"}, [START]), ({"after": "</s>"}, [START]), ({"start": False}, [END])],
    )
    def test_an_empty_prompt_is_the_start_token_or_else_the_end(
        self, options: dict[str, Any], expected: list[int]
    ) -> None:
        assert Encoder(tokenizer(**options)).prompt("") == expected

    def test_an_end_token_that_the_tokenizer_appends_is_no_part_of_a_prompt(self) -> None:
        encoder = Encoder(tokenizer(before="<s>", after="</s>"))
        assert encoder.prompt("a b") == [START, A, B]
        assert encoder.prompt(turns(("user", "a"), ("user", "b"))) == [START, A, B]
        assert encoder.completion("a", "b") == [B, END]

    def test_a_completion_that_says_its_end_itself_ends_once(self) -> None:
        encoder = Encoder(tokenizer())
        assert encoder.completion("a", "b c </s>") == [B, C, END]
        assert encoder.completion("a", "") == [END]

    def test_text_after_an_end_token_is_cut_and_told(self) -> None:
        encoded, problem = Encoder(tokenizer()).group(group(completions=("b </s> c d", "e </s> ")))
        assert encoded is not None and encoded.completions == [[B, END], [E, END]]
        assert problem is not None and problem.line == 7 and "</s>" in problem.reason
        assert Encoder(tokenizer()).group(group(completions=("b </s>", "e")))[1] is None


class TestMessages:
    def test_without_a_template_contents_are_joined(self) -> None:
        encoder = Encoder(tokenizer(before="<s>"))
        seen: list[str] = []
        inner = encoder.tokenizer

        class Spy:
            eos_token_id, bos_token_id, chat_template = END, START, None

            def __call__(self, text: str, **options: Any) -> Any:
                seen.append(text)
                return inner(text, **options)

        encoder.tokenizer = encoder.tokens.tokenizer = Spy()
        assert encoder.prompt(turns(("user", "a"), ("assistant", "b"))) == [START, A, B]
        assert encoder.completion(turns(("user", "a")), turns(("assistant", "c"), ("user", "d"))) == [C, D, END]
        assert seen == ["a\n\nb\n\n", "c\n\nd"]

    def test_the_models_template(self) -> None:
        encoder = Encoder(tokenizer(before="<s>", template=TEMPLATE))
        prompt = turns(("user", "a"), ("assistant", "b"), ("user", "c"))
        assert encoder.prompt(prompt) == [START, USER, A, END, ASSISTANT, B, END, USER, C, END, ASSISTANT]
        assert encoder.completion(prompt, turns(("assistant", "d e"))) == [D, E, END]
        # A plain completion to a prompt of messages, and the other way round.
        assert encoder.completion(prompt, "d e") == [D, E, END]
        assert encoder.completion("a", turns(("assistant", "d e"))) == [D, E, END]

    def test_a_template_whose_whole_does_not_begin_with_its_prompt(self) -> None:
        """Some templates drop earlier turns or reasoning: then the completion is taken as it is."""
        odd = (
            "{% for turn in messages %} {{ turn['content'] }}{% endfor %}{% if add_generation_prompt %} user{% endif %}"
        )
        encoder = Encoder(tokenizer(template=odd))
        assert encoder.completion(turns(("user", "a")), turns(("assistant", "d e"))) == [D, E, END]

    def test_messages_that_the_template_refuses_are_told(self) -> None:
        encoder = Encoder(tokenizer(template=TEMPLATE))
        refused = group(turns(("system", "a"), ("user", "b")), (turns(("assistant", "c")),))
        encoded, problem = encoder.group(refused)
        assert encoded is None and problem is not None
        assert (problem.file, problem.line) == ("rows.jsonl", 7) and "no system" in problem.reason
        good, problems = encoder.groups([refused, group()])
        assert len(good) == 1 and len(problems) == 1


QWEN = (
    "{% for turn in messages %}<s> {{ turn['role'] }} {{ turn['content'] }} e </s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant{% endif %}"
)
"""A turn ends with a token of its own, and more stands behind it, as in templates of instruct models."""


class TestPlainPromptsOfAnInstructModel:
    def encoder(self, template: str = QWEN, **options: Any) -> Encoder:
        return Encoder(tokenizer(before="<s>", template=template), Prompting(**options), end_token_ids=(END, E))

    def test_a_plain_prompt_is_a_users_message_and_its_completion_the_answer(self) -> None:
        encoder = self.encoder()
        asked = turns(("user", "a b"))
        encoded, problem = encoder.group(group("a b", ("c", "d")))
        assert problem is None and encoded is not None
        assert encoded.prompt == [START, USER, A, B, E, END, START, ASSISTANT] == encoder.prompt(asked)
        # The turn's own end, where sampling ends, and nothing behind it.
        assert encoded.completions == [[C, E], [D, E]]
        same, _ = encoder.group(group(asked, (turns(("assistant", "c")), turns(("assistant", "d")))))
        assert same is not None and (same.prompt, same.completions) == (encoded.prompt, encoded.completions)

    def test_training_goes_on_from_the_prompt_that_is_sampled_from(self) -> None:
        encoder = self.encoder()
        encoded, _ = encoder.group(group("a b", ("c",)))
        whole = encoder.tokenizer("<s> user a b e </s><s> assistant c e", add_special_tokens=False)["input_ids"]
        assert encoded is not None and encoder.prompt("a b") + encoded.completions[0] == whole

    def test_plain_prompts_can_be_used_as_they_are(self) -> None:
        encoder = self.encoder(chat_template=False)
        encoded, _ = encoder.group(group("a b", ("c",)))
        assert encoded is not None and (encoded.prompt, encoded.completions) == ([START, A, B], [[C, END]])
        assert encoder.prompt(turns(("user", "a"))) == [START, USER, A, E, END, START, ASSISTANT]

    def test_without_a_prompt_there_is_no_message(self) -> None:
        encoded, _ = self.encoder().group(group("", ("c",)))
        assert encoded is not None and (encoded.prompt, encoded.completions) == ([START], [[C, END]])

    def test_a_plain_prompt_may_have_completions_of_several_turns(self) -> None:
        lead = turns(("assistant", "b"), ("user", "a"))
        encoded, problem = self.encoder().group(group("c", ((*lead, Message("assistant", "d")),)))
        assert problem is None and encoded is not None and encoded.completions == [[D, E]]
        assert encoded.prompt == self.encoder().prompt(turns(("user", "c"), *lead))

    def test_a_system_message_stands_first_where_there_is_none(self) -> None:
        encoder = self.encoder(system="d")
        expected = [START, SYSTEM, D, E, END, START, USER, A, E, END, START, ASSISTANT]
        assert encoder.prompt("a") == encoder.prompt(turns(("user", "a"))) == expected
        own = turns(("system", "c"), ("user", "a"))
        assert encoder.prompt(own) == [START, SYSTEM, C, *expected[3:]]
        assert encoder.completion("a", "c") == [C, E]
        assert encoder.prompt("") == [*expected[:5], START, ASSISTANT]

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            (TEMPLATE, r"^the chat template of .* rejects `system` \(no system\): leave it out, or put the text into"),
            ("{% for turn in messages if turn['role'] != 'system' %} {{ turn['content'] }}{% endfor %}", "drops a sys"),
            (None, r"^`system` needs a chat template, and .* has none: leave it out, or put the text into the promp"),
        ],
        ids=["rejects", "drops", "none"],
    )
    def test_a_model_that_cannot_read_a_system_message_is_one_line(self, template: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            self.encoder(template, system="d")
        assert "\n" not in str(caught.value)

    def test_a_template_that_joins_tokens_across_the_prompts_end_still_ends_the_turn(self) -> None:
        """The prompt's tokens do not begin the whole's, but its text does: the rest of the text is the answer."""
        encoder = self.encoder("{% if messages | length == 1 %}a b{% else %}a bc e{% endif %}")
        assert encoder.completion("a", "c") == [C, E]


class TestSeparators:
    @pytest.mark.parametrize(
        ("prompt", "completions", "expected"),
        [
            ("What is 1 plus one?", ["It is 2."], "\n"), ("Q: a\nA:", [" b"], ""), ("Q: a\n", ["b"], ""), (" ", [], ""),
            ("a", [], "\n"), ("a", [" b", "c"], "\n"), ("a", [" b", "\tc", ""], ""), ("", ["b"], ""), ("a", [""], "\n"),
            ("a", [turns(("assistant", " b"))], ""),
        ],
    )  # fmt: skip
    def test_a_newline_stands_where_there_is_no_white_space(
        self, prompt: str, completions: list[Any], expected: str
    ) -> None:
        assert Prompting().between(tokenizer(), prompt, completions) == expected

    def test_what_is_asked_for_stands_everywhere_and_may_be_nothing(self) -> None:
        for separator in ("", ": "):
            for prompt in ("a", "a "):
                assert Prompting(separator).between(tokenizer(), prompt, ["b"]) == separator
        assert Prompting("").between(tokenizer(), "a") == ""

    def test_prompts_are_encoded_with_it_in_training_and_in_sampling(self, tiny_llama: Any) -> None:
        from transformers import AutoTokenizer

        bytes_of = AutoTokenizer.from_pretrained(tiny_llama)
        encoder = Encoder(bytes_of)
        encoded, _ = encoder.group(group("1+1?", ("It is 2.",)))
        assert encoded is not None and encoded.prompt == encoder.prompt("1+1?") == bytes_of("1+1?\n")["input_ids"]
        spaced, _ = encoder.group(group("1+1?", (" It is 2.",)))
        assert spaced is not None and spaced.prompt == bytes_of("1+1?")["input_ids"]
        assert encoder.prompt("1+1?", [" It is 2."]) == spaced.prompt

    def test_two_sequences_have_nothing_between_them_unless_it_is_asked_for(self, tiny_t5: Any) -> None:
        from transformers import AutoTokenizer

        bytes_of = AutoTokenizer.from_pretrained(tiny_t5)
        for separator, expected in ((None, "a?"), ("\n", "a?\n")):
            encoder = Encoder(bytes_of, Prompting(separator), encoder_decoder=True)
            assert encoder.prompt("a?", ["b"]) == bytes_of(expected)["input_ids"]

    def test_a_template_that_is_switched_off_is_not_replaced_by_a_newline(self) -> None:
        assert Prompting(chat_template=False).between(tokenizer(template=TEMPLATE), "a", ["b"]) == ""


class TestNotes:
    ROWS = (("a", ("b",)), ("a ", ("b",)), ("", ("b",)), (turns(("user", "a")), ("b",)))

    def notes(self, *, template: str | None = None, rows: Any = ROWS, two: bool = False, **options: Any) -> list[str]:
        return Encoder(tokenizer(template=template), Prompting(**options), encoder_decoder=two).notes(rows)

    def test_the_template(self) -> None:
        (line,) = self.notes(template=TEMPLATE)
        expected = "plain prompts go through the model's chat template; `chat_template=False` uses them as they are"
        assert line == expected
        assert "as they are" in self.notes(template=TEMPLATE, chat_template=False)[0]
        assert "`separator` is not used" in self.notes(template=TEMPLATE, separator="")[0]
        assert self.notes(template=TEMPLATE, rows=self.ROWS[2:]) == []

    def test_prompts_that_went_through_a_template_already(self) -> None:
        _, line = self.notes(template=TEMPLATE, rows=[("<s> user a", ())])
        assert line.startswith("warning: a prompt holds the special token <s>, as if a chat template had been applied")

    def test_the_separator(self) -> None:
        (line,) = self.notes()
        assert line.startswith("a newline was put between prompt and completion of 1 of 2 plain-text rows")
        assert "`separator` takes another text" in line
        assert self.notes(separator="") == self.notes(two=True) == self.notes(rows=self.ROWS[1:]) == []


class TestLimits:
    def test_a_completion_that_is_cut_has_no_end_token_and_is_told(self) -> None:
        encoded, problem = Encoder(tokenizer(), max_length=4).group(group(completions=("c d e", "c", "c d")))
        assert encoded is not None and encoded.completions == [[C, D], [C, END], [C, D]]
        assert problem is not None and (problem.file, problem.line) == ("rows.jsonl", 7)
        assert "4 tokens was truncated to 2" in problem.reason and "`max_length` is 4" in problem.reason

    @pytest.mark.parametrize("template", [None, QWEN])
    def test_a_cut_completion_does_not_count_as_ended(self, template: str | None) -> None:
        """Its log pi is over its own tokens, without an end; that of a whole one has the end."""
        encoder = Encoder(tokenizer(template=template), max_length=30, end_token_ids=(END, E))
        encoded, problem = encoder.group(group("a", ("c d " * 20, "c d")))
        assert encoded is not None and problem is not None and "truncated" in problem.reason
        steps = collate([encoded], pad=PAD).action
        ended = (torch.isin(steps.steps, torch.tensor([END, E])) & steps.mask).any(-1)
        assert ended.tolist() == [[False, True]]
        assert steps.mask.sum(-1).tolist() == [[30 - len(encoded.prompt), 3]]

    def test_the_length_is_told_before_anything_is_cut(self) -> None:
        encoder = Encoder(tokenizer(), max_length=4)
        rows = [group("a", ("c",)), group("a", ("c", "c d e a b")), group("a b c d e", ("c",))]
        assert [encoder.encode(row).length for row in rows] == [3, 7, 7]
        assert Encoder(tokenizer(), encoder_decoder=True).encode(rows[1]).length == 6
        assert Encoder(tokenizer(), max_length=9, positions=5).max_length == 5

    def test_a_completion_that_just_fits_is_whole(self) -> None:
        encoded, problem = Encoder(tokenizer(), max_length=5).group(group(completions=("c d",)))
        assert encoded is not None and encoded.completions == [[C, D, END]] and problem is None

    @pytest.mark.parametrize("limit", [1, 2])
    def test_a_prompt_that_fills_the_limit_is_left_out_and_told(self, limit: int) -> None:
        encoded, problem = Encoder(tokenizer(), max_length=limit).group(group())
        assert encoded is None and problem is not None
        assert str(problem).startswith("rows.jsonl:7: the prompt has 2 tokens and leaves no room for a completion")
        assert problem.reason.endswith(f"row dropped; raise `max_length`, which is {limit}")

    def test_all_groups_are_accounted_for(self) -> None:
        groups = [group("a"), group("a b c d e"), group("a b", ("c d e",)), group("a", ("c", "d"))]
        good, problems = Encoder(tokenizer(), max_length=4).groups(groups)
        assert [item.group for item in good] == [groups[0], groups[2], groups[3]]
        assert ["dropped" in item.reason for item in problems] == [True, False]


class TestEncoderDecoder:
    def test_prompt_keeps_the_end_token_and_each_side_has_the_limit(self) -> None:
        encoder = Encoder(tokenizer(after="</s>"), encoder_decoder=True, max_length=3)
        encoded, problem = encoder.group(group("a b", ("c d", "c")))
        assert problem is None and encoded is not None
        assert encoded.prompt == [A, B, END] and encoded.completions == [[C, D, END], [C, END]]
        assert encoder.prompt("") == [END]
        encoded, problem = encoder.group(group("a", ("c d e",)))
        assert encoded is not None and encoded.completions == [[C, D, E]]
        assert problem is not None and "truncated to 3" in problem.reason
        encoded, problem = encoder.group(group("a b c", ("c",)))
        assert (
            encoded is None and problem is not None and "4 tokens" in problem.reason and "which is 3" in problem.reason
        )


class TestPadding:
    def test_prompts_are_padded_on_the_left(self) -> None:
        context = pad_left([[A], [B, C, D]], PAD)
        assert context.ids.tolist() == [[PAD, PAD, A], [B, C, D]]
        assert context.mask.tolist() == [[False, False, True], [True] * 3]

    def test_actions_are_ragged_in_number_and_length(self) -> None:
        action = pad_actions([[[A, END]], [[B], [C, D, END]]], PAD)
        assert action.steps.tolist() == [[[A, END, PAD], [PAD] * 3], [[B, PAD, PAD], [C, D, END]]]
        assert action.mask.sum(-1).tolist() == [[2, 0], [1, 3]]
        assert bool(action.mask[0, 0, 1]) and not bool(action.mask[1, 0, 1])

    def test_a_pad_token_inside_an_action_is_a_step(self) -> None:
        assert pad_actions([[[PAD, END]]], PAD).mask.tolist() == [[[True, True]]]


class TestFeedback:
    def test_labels(self) -> None:
        found = pad_feedback([group(completions=("c",), sign=(-1,)), group(completions=("c", "d"), sign=(0, 1))])
        assert isinstance(found, Labels)
        assert found.sign.tolist() == [[-1, 0], [0, 1]] and found.present.tolist() == [[True, False], [True, True]]
        assert found.sign.dtype == torch.long

    def test_rewards(self) -> None:
        found = pad_feedback([group(reward=(0.25, -3.0)), group(completions=("c",), reward=(7.5,))])
        assert isinstance(found, Rewards)
        assert found.value.tolist() == [[0.25, -3.0], [7.5, 0.0]] and found.present.tolist() == [
            [True, True],
            [True, False],
        ]

    def test_preferences_both_ways_round(self) -> None:
        wins = ((0, 1, 0.9, 2.0), (2, 1, 0.6, 0.5))
        found = pad_feedback([group(completions=("c", "d", "e"), wins=wins), group(wins=((1, 0, 1.0, 3.0),))])
        assert isinstance(found, Preferences)
        assert found.win[0].tolist() == pytest.approx(torch.tensor([[0.0, 0.9, 0.0], [0.1, 0.0, 0.4], [0.0, 0.6, 0.0]]))
        assert found.observed[0].tolist() == [[False, True, False], [True, False, True], [False, True, False]]
        assert found.observed[1].sum() == 2 and found.win[1, 1, 0] == 1.0 and found.win[1, 0, 1] == 0.0
        assert found.margin is not None
        assert found.margin[0].tolist() == [[0.0, 2.0, 0.0], [-2.0, 0.0, -0.5], [0.0, 0.5, 0.0]]
        assert found.margin[1, 1, 0] == 3.0 and found.margin[1, 0, 1] == -3.0
        assert found.present.tolist() == [[True] * 3, [True, True, False]]

    def test_margins_that_are_known_are_kept_beside_those_that_are_not(self) -> None:
        """What a pair's margin is must not depend on what it is batched with."""
        known, unknown = group(wins=((0, 1, 1.0, 3.0),)), group(wins=((0, 1, 1.0, None),))
        alone = pad_feedback([unknown])
        assert isinstance(alone, Preferences) and (alone.margin is None or not alone.margin.isfinite()[0, 0, 1])
        both = pad_feedback([known, unknown])
        assert isinstance(both, Preferences) and both.margin is not None
        assert both.margin[0, 0, 1] == 3.0 and both.margin[0, 1, 0] == -3.0
        assert not both.margin[1, 0, 1].isfinite()

    def test_kinds_are_not_mixed(self) -> None:
        with pytest.raises(ValueError, match="different kinds"):
            pad_feedback([group(reward=(1.0, 2.0)), group(sign=(1, -1))])


class TestCollate:
    def test_a_batch(self) -> None:
        rows = [
            EncodedGroup([A, B], [[C, END], [D, END]], group(reward=(1.0, 2.0))),
            EncodedGroup([A], [[E, D, END]], group(completions=("e d",), reward=(3.0,))),
        ]
        batch = collate(rows, pad=PAD)
        assert batch.context.ids.tolist() == [[A, B], [PAD, A]]
        assert torch.equal(batch.action.mask.any(-1), batch.present)
        assert batch.mismatched is None and batch.num_contexts == 2
        half = batch.select(slice(1, 2))
        assert half.context.ids.tolist() == [[PAD, A]] and half.feedback.value.tolist() == [[3.0, 0.0]]

    def test_mismatched_completions_are_the_first_ones_of_the_rows_given(self) -> None:
        rows = [EncodedGroup([A], [[n, END], [E, END]], group()) for n in (B, C, D)]
        batch = collate(rows, pad=PAD, mismatched=[*rows[1:], rows[0]])
        assert batch.mismatched is not None
        assert batch.mismatched.steps.tolist() == [[[C, END]], [[D, END]], [[B, END]]]

    def test_move_keeps_everything(self) -> None:
        rows = [EncodedGroup([A], [[B, END], [C, END]], group(wins=((0, 1, 0.7, None),)))]
        batch = collate(rows, pad=PAD, mismatched=rows)
        moved = move(batch, "cpu")
        assert torch.equal(moved.context.ids, batch.context.ids) and torch.equal(moved.feedback.win, batch.feedback.win)
        assert moved.mismatched is not None and torch.equal(moved.mismatched.steps, batch.mismatched.steps)
        nowhere = move(batch, "meta")
        assert nowhere.context.ids.is_meta and nowhere.feedback.win.is_meta and nowhere.mismatched.mask.is_meta


class TestTurns:
    """Chat models end a turn with a token of their own, and only the last turn is an action."""

    def test_a_completion_ends_at_the_turn_token_of_the_model(self) -> None:
        template = "{% for turn in messages %} {{ turn['role'] }} {{ turn['content'] }} e{% endfor %}"
        template += "{% if add_generation_prompt %} assistant{% endif %}"
        row = group(turns(("user", "a")), (turns(("assistant", "c")),))
        encoded, problem = Encoder(tokenizer(template=template), end_token_ids=(END, E)).group(row)
        assert problem is None and encoded is not None
        assert encoded.completions == [[C, E]]
        # Without knowing that token, the tokenizer's end is put behind it.
        encoded, _ = Encoder(tokenizer(template=template)).group(row)
        assert encoded is not None and encoded.completions == [[C, E, END]]

    def test_turns_that_all_completions_begin_with_are_prompt(self) -> None:
        lead = turns(("assistant", "b"), ("user", "a"))
        row = group(turns(("user", "a")), ((*lead, Message("assistant", "c")), (*lead, Message("assistant", "d"))))
        encoded, problem = Encoder(tokenizer(before="<s>", template=TEMPLATE)).group(row)
        assert problem is None and encoded is not None
        assert encoded.prompt == [START, USER, A, END, ASSISTANT, B, END, USER, A, END, ASSISTANT]
        assert encoded.completions == [[C, END], [D, END]]

    def test_completions_that_differ_before_their_last_turn_are_a_problem(self) -> None:
        one = turns(("assistant", "b"), ("user", "a"), ("assistant", "c"))
        encoded, problem = Encoder(tokenizer(template=TEMPLATE)).group(group("", (one, turns(("assistant", "d")))))
        assert encoded is None and problem is not None
        assert "differ in more than their last turn" in problem.reason and problem.line == 7
