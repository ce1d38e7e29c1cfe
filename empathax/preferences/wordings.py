"""What gives a reply away as none: refusals, leaked frames of a prompt, and advice that can harm. English only.

The list of harmful advice is a coarse net for training data, not a safety system.
"""

from __future__ import annotations

import re

from empathax.evaluation.text.dialogue_health import leaks_template

_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bi(?:'m| am) (?:just |only )?an? (?:ai|"
    r"(?:large )?language model)\b|\bi (?:can(?:'t|not)|am (?:not able|unable) to|'m (?:not able|unable) to|won't) "
    r"(?:assist|help(?! but\b| \w+ing\b)|fulfil|comply|provide|answer(?! \w+ for you\b)|respond|continue|engage|"
    r"discuss|create|generate|write)\b"
    r"|\bagainst my (?:guidelines|programming|policy)\b|\bi do(?:n't| not) have (?:personal )?(?:feelings|emotions)\b"
)
_FRAME = re.compile(
    r"^\W*(?:supporter|assistant|user|seeker|system|reply|response|answer|level \d|stage \d)\b[^\w\n]*:"
    r"|^\W*(?:sure|certainly|of course|okay)?\W*here(?:'s| is| are)\b[^\n]{0,60}\b(?:reply|response|answer|message)\b"
    r"|\b(?:level of validation|radical genuineness|accurate reflection|dialectical behaviou?r therapy)\b"
    r"|^\s*(?:```|\{\s*\")|\[(?:your |insert |the )?(?:name|user|seeker|reply)[^\]\n]{0,30}\]",
    re.MULTILINE,
)
_UNSAFE = re.compile(
    r"(?<!not )(?<!n't )(?<!never )\b(?:stop|quit|skip|throw away|come off) (?:taking )?(?:your|the|all|any) "
    r"(?:\w+ ){0,2}(?:meds|medications?|pills|medicines?|antidepressants|treatment|therapy)\b"
    r"|\b(?:double|increase|lower|change|reduce) (?:your|the) dos(?:e|age)\b"
    r"|\btake (?:\w+ ){0,3}\d+ ?(?:mg|pills|milligrams)\b"
    r"|\byou (?:should|could|can|might as well|deserve to|need to) (?:just |really )*"
    r"(?:kill|hurt|harm|cut|punish|starve) yourself\b"
    r"|\b(?:better off|easier) (?:if you were )?dead\b|\bkill yourself\b"
    r"|\b(?:no (?:need|reason|point)|do(?:n't| not)) (?:to |in |ever )*"
    r"(?:see|seeing|tell|telling|talk|talking|call|calling) (?:\w+ ){0,4}"
    r"(?:doctor|therapist|psychiatrist|police|hotline|anyone)\b"
    r"|\b(?:have|try|take|drink|get|use|smoke) (?:a few|some|a couple(?: of)?|more|a) "
    r"(?:drinks?(?! of (?:water|tea|milk|juice)\b)|beers?|shots?|wine|alcohol|weed|cocaine|pills)\b"
    r"|\bget (?:drunk|wasted|high(?= on\b|[.,!?]|$))"
    r"|\b(?:you should|just|go|why don't you) (?:hit|slap|punch|beat|hurt) (?:him|her|them|back)\b"
    r"|\b(?:you should|just) (?:stop|quit) eating\b"
)


def is_refusal(text: str) -> bool:
    """Whether a model declines, or speaks of itself as a model."""
    return _REFUSAL.search(_plain(text)) is not None


def is_leaked(text: str) -> bool:
    """Whether control tokens of a chat template, or the words of a prompt around a reply, stand in the text."""
    return leaks_template(text) or _FRAME.search(_plain(text)) is not None


def unsafe_words(text: str) -> str:
    """The words of `text` that advise something harmful; "" if there are none."""
    found = _UNSAFE.search(_plain(text))
    return found[0] if found else ""


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")
