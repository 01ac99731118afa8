"""Signs of a chat in plain text: an assistant's words, turns by name, markup; and a right end.

Pure, over what a model said or was fed. Each is a detector with labelled rows of its own, see
``phases.detectors``; what a reading means is the gate's business.
"""

import re
from collections.abc import Collection
from typing import Final

from runbook.text import words

_MARKUP: Final = re.compile(
    r"<[|\uff5c][a-z][a-z0-9_ \u2581]*[|\uff5c]>|\[\|[a-z]+\|\]"
    r"|</?(?:start|end)_of_[a-z]+>|<extra_id_\d+>"
    r"|\[/?INST\](?!\w)|<</?SYS>>",
    re.IGNORECASE,
)
"""Markers of turns, and other special tokens, in the chat formats in use; only whole ones."""
_PLAIN_TURNS: Final = tuple(
    (re.compile(asked, re.IGNORECASE), re.compile(said, re.IGNORECASE))
    for asked, said in (
        (r"\buser:", r"\bassistant:"),
        (r"###\s*instruction:", r"###\s*response:"),
    )
)
"""One turn, and what it is a chat with behind it; two patterns, as one would try every pair."""
_ANY_CASE: Final = frozenset({"assistant", "user"})
_ROLES: Final = _ANY_CASE | {"system", "model"}
"""What is left of a chat's markup where its tokens are decoded to nothing, whatever their name."""
_NAMED: Final = re.compile(r"\s*(?:assistant|chatbot|ai)\s*[:>]\s*\S", re.IGNORECASE)
_LABEL: Final = re.compile(r"[\s*_]*(?:[^\W\d_]{2,15}\s*(?:[:>]|\n\s*\n))?[\s*_\"]*")
_OPENING: Final = re.compile(
    r"(?:sure|certainly|absolutely|of course|definitely|gladly)(?: thing)?\s*"
    r"(?:[!.]|[,:\u2013\u2014]\s*(?:here|i\b|i'|let me|below)|$)"
    r"|(?:okay|ok|al+ ?right|got it)[,.!]\s*(?:so,? )?(?:here(?:'s| is| are)|let(?:'s| me)"
    r"|i can\b(?!')|i'll|below)"
    r"|no problem!|got it!|(?:great|good) question|thank you for (?:your question|asking)"
    r"|as an (?:ai|artificial intelligence)\b|as a (?:large )?language model"
    r"|i(?:'m| am) (?:an ai|a (?:large )?language model)\b"
    r"|(?:i(?:'m| am) )?sorry,? but i (?:can|am|'m|do)|(?:unfortunately,? )?i am unable to"
    r"|i(?:'d| would| will|'ll) (?:be (?:happy|glad) to|love to (?:help|assist))"
    r"|(?:happy|glad) to help\b"
    r"|i(?:'m| am) (?:happy|glad|here) to (?:help|assist)"
    r"|i can (?:certainly )?(?:help|assist) you (?:with|to)? ?that"
    r"|(?:here(?:'s| is| are)|below (?:is|are))[^\n]{0,90}:\s*(?:$|\n|[\d\"*-])",
    re.IGNORECASE,
)
_CLOSING: Final = re.compile(
    r"\bhope (?:this|that) helps|\bhow (?:can|may) i (?:help|assist) you|\bfeel free to ask"
    r"|\banything else i can (?:help|do)|\blet me know if you (?:have any|need any|need more)",
    re.IGNORECASE,
)
_DENIALS: Final = frozenset({"not", "never", "no", "nor"})
_REACH: Final = 2
"""How many words after a denial are denied."""


def holds_markup(text: str) -> bool:
    """Whether a text holds a whole marker of a chat's turns, or another special token."""
    return _MARKUP.search(text) is not None or any(
        (first := asked.search(text)) is not None and said.search(text, first.end()) is not None
        for asked, said in _PLAIN_TURNS
    )


def is_assistant(text: str) -> bool:
    """Whether a text opens or closes as assistants do, or a turn of a chat is named in it.

    A role counts on a line of its own, an opening also behind a role of another name.
    """
    plain = text.replace("\u2019", "'")
    label = _LABEL.match(plain)
    return (
        any(_names_role(line.strip().rstrip(":")) for line in text.split("\n"))
        or _NAMED.match(plain) is not None
        or any(_OPENING.match(plain, at) for at in {_start(plain), label.end() if label else 0})
        or _CLOSING.search(plain) is not None
        or _MARKUP.search(text) is not None
    )


def _start(text: str) -> int:
    return len(text) - len(text.lstrip(' \t\n*_"'))


def _names_role(line: str) -> bool:
    """A system or a model in capitals is some other thing's."""
    return line in _ROLES or line.lower() in _ANY_CASE


def is_right(text: str, allowed: Collection[str]) -> bool:
    """Whether a continuation, however long, says one of the words and does not deny it."""
    said = words(text)
    return any(
        word in allowed and _DENIALS.isdisjoint(said[max(0, at - _REACH) : at])
        for at, word in enumerate(said)
    )
