"""What a response says: its lines, its items, its number, its words. Pure, and about English.

Two readers would agree on what these functions find; whether it is right is for
``phases.verifiers``.
"""

import re
from collections.abc import Iterator


def normalise(text: str) -> str:
    """Return lower case, single spaces, straight quotes, no punctuation or quotes around."""
    text = text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return re.sub(
        r"^[\s\"'`*_(\[.,;:!?-]+|[\s\"'`*_)\].,;:!?-]+$", "", " ".join(text.split())
    ).lower()


def split_items(response: str) -> list[str]:
    """Return the items of a listed answer; an item that is empty stays as an empty string.

    Commas, semicolons, line breaks and `and` separate; bullets, numbers before items, a heading
    line that ends in a colon and a final period do not count. On a line of prose the list is the
    stretch with most items of the sentence that leads into one, else of the first that holds one:
    `Three fruits are an apple, a pear and a fig. Buy, wash and eat them.` has three. Text on
    further lines is more items: a list that goes on into something else is not the list.
    """
    lines = lines_of(response)
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    items: list[str] = []
    for place, line in enumerate(lines):
        marked = _MARKER.match(line)
        text = _split_line(_GLOSS.split(line[marked.end() :])[0]) if marked else _listed(line)
        # A separator at a line's end only leads over to the next line.
        items += text[:-1] if text[-1:] == [""] and place < len(lines) - 1 else text
    return items


def find_number(response: str) -> float | None:
    """Return the number that the first line gives, None if it has none.

    Of several numbers it is the one after the last `is`, `=` or the like of the first clause that
    has a number: `7 plus 5 is 12, as 7 + 6 is 13` gives 12. A clause with `if` restates.
    Digits (`1,000`, `-3.5`) and English words up to the thousands are read; `7th` is no number.
    """
    line = next(iter(lines_of(response)), "").lower()
    for clause in re.split(r"[,;.!?]\s", re.sub(r"^if\s[^,]*,\s", "", line)):
        after = [m.end() for m in _EQUALS.finditer(clause)]
        for start in [*after[::-1], 0]:
            match = _NUMBER.search(clause, start)
            if match:
                return _value(match.group())
    return None


_MARKER = re.compile(r"^\s*(?:[-*\u2022]\s+|\(?\d{1,2}[.)]\s+)")
_GLOSS = re.compile(r"\s[-\u2013\u2014]\s|:|\s\(")
_LEAD_IN = re.compile(r":\s|\s(?:are|include)\s")
_SENTENCE = re.compile(r"(?<=[a-z]{3})[.!?]\s+(?=[A-Z])")
_SEPARATOR = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+|\s+\d{1,2}[.)]\s+")
_ARTICLE = re.compile(r"^(?:an?|the|some)\s+")
_EQUALS = re.compile(r"=|\b(?:is|are|equals?|makes?|gives?|has|have)\b")

_ONES = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_SMALL = {word: value for value, word in enumerate(_ONES)}
_SMALL |= {word: 10 * place for place, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1000}
_BELOW_100 = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES[1:10])}))?|{'|'.join(_ONES[::-1])})"
)
_SCALE = r"(?:hundred|thousand)"
_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d|st\b|nd\b|rd\b|th\b)"
    rf"|\b(?:(?:an?|{_BELOW_100})(?:\s{_SCALE})+(?:(?:\sand)?\s{_BELOW_100}(?:\s{_SCALE})*)*"
    rf"|{_BELOW_100})\b"
)


def _value(text: str) -> float:
    text = text.replace("\u2212", "-")
    if any(c.isdigit() for c in text):
        return float(text.replace(",", ""))
    total = group = 0
    for word in re.split(r"[\s-]+", text):
        if word in _SCALES:
            group = max(group, 1) * _SCALES[word]
            if word == "thousand":
                total, group = total + group, 0
        else:
            group += _SMALL.get(word, 0)
    return float(total + group)


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def readings(response: str) -> tuple[str, str]:
    """Return the normalised response as it stands and without an article: `a` can be a letter."""
    given = normalise(response)
    return given, _ARTICLE.sub("", given)


def count_words(text: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in text.split())


def _listed(prose: str) -> list[str]:
    """Return the items of the list in a line of prose; a remark behind it may hold more commas."""
    found = [
        (bool(_LEAD_IN.search(sentence)), max(map(_split_line, _LEAD_IN.split(sentence)), key=len))
        for sentence in _SENTENCE.split(prose)
    ]
    lists = [(leads, items) for leads, items in found if len(items) > 1]
    led = [items for leads, items in lists if leads]
    return (led or [items for _, items in lists] or [items for _, items in found])[0]


def _split_line(line: str) -> list[str]:
    text = re.sub(r"^and\s+|[\s.!]+$", "", _MARKER.sub("", line, count=1).strip())
    return _SEPARATOR.split(text)


def names_item(entry: str, item: str) -> bool:
    """Say whether the item is the entry under one of its names, singular or plural."""
    bare = _ARTICLE.sub("", normalise(re.sub(r"\(.*", "", item)))
    return any(
        _plural_forms(bare) & _plural_forms(_ARTICLE.sub("", normalise(name)))
        for name in entry.split("|")
    )


_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "teeth": "tooth",
    "women": "woman",
}
_ENDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ies", ("y",)),
    ("ves", ("f", "fe")),
    ("es", ("",)),
    ("s", ("",)),
)


def _plural_forms(phrase: str) -> set[str]:
    """Return the phrase and what it may be the plural of: two phrases that share one are equal."""
    head, _, last = phrase.rpartition(" ")
    forms = {last, _IRREGULAR.get(last, last)}
    for ending, singulars in _ENDINGS:
        if last.endswith(ending) and len(last) > len(ending) + 1:
            forms |= {last.removesuffix(ending) + singular for singular in singulars}
    return {f"{head} {form}".strip() for form in forms}


def inflections(word: str) -> Iterator[str]:
    yield from (word, word + "s", word + "es", word + "ed", word + "ing", word + "d", word + "er")
    stem = word[:-1]
    if word.endswith("e"):
        yield from (stem + "ing", stem + "er")
    if word.endswith("y"):
        yield from (stem + "ies", stem + "ied")
    if re.search(r"[aeiou][bdgklmnprt]$", word):
        yield from (word + word[-1] + "ed", word + word[-1] + "ing", word + word[-1] + "er")
