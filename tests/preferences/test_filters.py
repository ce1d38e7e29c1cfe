"""Every filter drops what it is for and nothing else."""

import pytest

from empathax.data.records import Message
from empathax.errors import ConfigError
from empathax.preferences.filters import REASONS, FilterOptions, filter_pairs
from empathax.preferences.overlap import HeldOutTexts
from empathax.preferences.pairs import Candidate, Context, Pair

HELD_OUT = "I have not slept since my brother moved out and the flat is so quiet now that I hate it"
CHOSEN, REJECTED = "That sounds lonely, and it makes sense that you miss him.", "You should find a new flatmate soon."


def pair(chosen=CHOSEN, rejected=REJECTED, said="My brother moved out.", turn=0, link=""):
    context = Context("d", turn, 9, (Message("user", said),), "gold", "file:1")
    return Pair(context, Candidate(chosen), Candidate(rejected), "samples", link=link)


def reasons(*pairs, options=FilterOptions()):  # noqa: B008
    return [entry["reason"] for entry in filter_pairs(pairs, HeldOutTexts([HELD_OUT, "Too short"]), options).dropped]


CASES = {
    "empty": pair(rejected=" \n"),
    "same_reply": pair(rejected=CHOSEN.upper() + " "),
    "length_ratio": pair(rejected="No " * 40),
    "template": pair(rejected="You should find a new flatmate.<|im_end|>"),
    "refusal": pair(chosen="I'm sorry, but as an AI language model I have no brother myself, sadly so."),
    "unsafe": pair(chosen="That is hard. You could stop taking your meds, maybe that will help you."),
    "overlap": pair(said="Well. I have not slept since my brother moved out, and the flat is so QUIET now!"),
}


@pytest.mark.parametrize("reason", CASES)
def test_what_is_wrong_with_a_pair_is_named(reason):
    assert reasons(pair(), CASES[reason]) == [reason]


@pytest.mark.parametrize(
    ("reason", "chosen"),
    [
        ("template", "Supporter: That sounds lonely, and it makes sense."),
        ("template", "Sure! Here is a possible reply: That sounds lonely."),
        ("template", "In this reply I use radical genuineness to say so."),
        ("refusal", "I cannot assist with that, I hope you will find help."),
        ("refusal", "I'm sorry, I can't help with this topic, ask a friend."),
        ("refusal", "I am not able to answer that, talk to somebody close."),
        ("unsafe", "You should just hit him back, then he will move in."),
        ("unsafe", "Take 20 mg more than you did, that will make you sleep."),
    ],
)
def test_wordings(reason, chosen):
    assert reasons(pair(chosen=chosen)) == [reason]


@pytest.mark.parametrize(
    "chosen",
    [
        "I can't imagine how hard this is, I am so sorry to hear it.",
        "I can't help but admire how much strength you show in this.",
        "I cannot help smiling when I read how your brother talks.",
        "I can't answer that for you, but I am here and I listen.",
        "Please don't stop taking your medication without your doctor.",
        "Sit down for a moment, have a drink of water and breathe.",
        "Do you have to get high grades in the course, or just pass?",
        "Have you talked to your doctor about your medication so far?",
        "It sounds like you take it at the level of 1 day at a time: good.",
    ],
)
def test_harmless_wordings_pass(chosen):
    assert reasons(pair(chosen=chosen)) == []


def test_an_unsafe_rejected_reply_may_stay():
    assert reasons(pair(rejected="You should stop taking your meds and find a flatmate.")) == []


def test_short_turns_and_the_supporters_own_words_do_not_overlap():
    context = Context(
        "d", 1, 9, (Message("user", "Too short"), Message("assistant", HELD_OUT), Message("user", "Yes")), "", ""
    )
    kept = Pair(context, Candidate(CHOSEN), Candidate(REJECTED), "samples")
    assert reasons(kept) == []
    assert reasons(pair(rejected=HELD_OUT)) == ["overlap"]


def test_of_duplicates_the_first_is_kept_and_named():
    near = CHOSEN.replace("lonely", "very lonely")
    pairs = [pair(), pair(turn=1), pair(near, turn=2), pair(REJECTED, CHOSEN, turn=3)]
    result = filter_pairs(pairs, HeldOutTexts(), FilterOptions(near_duplicate_threshold=0.6))
    assert [kept.context.turn for kept in result.kept] == [0, 3]
    assert [(entry["reason"], entry["detail"]) for entry in result.dropped] == [
        ("duplicate", pairs[0].pair_id),
        ("near_duplicate", pairs[0].pair_id),
    ]
    assert reasons(*pairs, options=FilterOptions(near_duplicate_threshold=0)) == ["duplicate"]


def test_of_linked_pairs_both_are_dropped():
    pairs = [
        pair(link="a"),
        CASES["refusal"].__class__(**{**vars(CASES["refusal"]), "link": "a"}),
        pair(REJECTED, CHOSEN, link="b"),
    ]
    assert reasons(*pairs) == ["refusal", "link", "link"]


def test_limits_that_make_no_sense():
    with pytest.raises(ConfigError, match="2 problems"):
        FilterOptions(0.5, 1.5)
    assert set(CASES) | {"duplicate", "near_duplicate", "link"} == set(REASONS)


def test_a_whole_held_out_turn_inside_a_longer_one_is_overlap():
    held_out = HeldOutTexts(["Maybe you could call your aunt on Sunday?"])  # eight words
    longer = pair(chosen="That is sad. Maybe you could call your aunt on Sunday, or write.")
    dropped = filter_pairs([pair(), longer], held_out, FilterOptions()).dropped
    assert [(entry["reason"], entry["chosen"]) for entry in dropped] == [("overlap", longer.chosen.text)]
