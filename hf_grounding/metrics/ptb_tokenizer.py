"""What are the words of a caption, by the Penn Treebank tokenisation that the COCO toolkit scores?

The toolkit runs a Java tokeniser (Stanford PTBTokenizer 3.4.1, lines preserved, lower case), then drops punctuation
marks. Here it is in Python. White space cuts a caption into chunks; within one, at each position the longest of the
rules below wins, the first of equally long ones. Chunks are cached, so most words cost one dictionary look-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

__all__ = ["ptb_tokenize"]

# What the toolkit drops. It names brackets in upper case (-LRB-), but they come in lower case, and so they stay.
DROPPED = frozenset(["''", "'", "``", "`", *".?!,:;-", "--", "..."])

_MARKS = r"\u0300-\u036f\u0900-\u0903\u093a-\u094f"  # some scripts write vowels and accents as marks
_LETTER = rf"(?:[^\W\d_¹²³¼½¾⁰-₟⅐-↉]|[{_MARKS}])"
_ALNUM = rf"(?:[^\W_¹²³¼½¾⁰-₟⅐-↉]|[{_MARKS}])"
_END = rf"(?!{_LETTER})"

# Words that keep a period after them. Single letters and such as `U.S.` do by a rule of their own.
_ABBREVIATIONS = "|".join(
    [
        "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thurs?|Thu|Fri",
        "Ala|Ariz|Calif|Colo?|Conn|Ct|Dak|Fla|Ga|Ind|Kans?|Ky|Md|Mich|Minn|Mo|Mont|Neb|Nev|Okla|Penn|Tenn|Va|Vt|Wisc?|Wyo",
        "(?-i:A)(?:z|rk)|(?-i:D)el|(?-i:I)ll|(?-i:L)a|(?-i:M)(?:ass|iss)|(?-i:O)re|(?-i:P)a|(?-i:T)ex|(?-i:W)ash",
        "Mr|Mrs|Ms|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?|Ave|Pres|Lieut",
        "Hon|Brig|Com?dr|Cmdr|Pfc|Spc|Supts?|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc|Blvd|Rd|Jr|Sr|Bros",
        r"Esq|Ph\.D|Ed\.D|Inc|Cos?|Corp|Ltd|Plc|Bhd|Assn|Univ|Intl|Sys|Bldg|Dept|etc|al|cf|cont'd|vs|seq|tel|est|ext|sq",
    ]
)
_WITH_APOSTROPHE = "|".join(
    [
        "ol'|somethin'|dunkin'|c'mon|c'est|nor'easter|'em|'till?|'cause|'n|'[2-9]0s|'[0-9][0-9](?!\\S)",
        rf"[dol]'{_ALNUM}+",
        rf"(?-i:[A-HJ-XZn])'{_LETTER}{{2,}}",  # O'Brien; not I'am
        rf"{_LETTER}{{2,}}(?<=[aeiouy])'[aeiou]{_LETTER}*",  # Hawai'i
    ]
)


def _is(token: str) -> list[str]:
    return [token]


def _cut(position: int) -> Callable[[str], list[str]]:
    return lambda token: [token[:position], token[position:]]


def _brackets(token: str) -> list[str]:
    return [token.replace("(", "-lrb-").replace(")", "-rrb-")]


def _entity(token: str) -> list[str]:
    return [_ENTITIES[token.lower()]]


def _sign(token: str) -> list[str]:
    return [_SIGNS.get(token, token)]


def _none(token: str) -> list[str]:
    return []


_APOSTROPHES = {0x92: "'", 0x2019: "'"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"}
_SIGNS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''", "‘": "`", "“": "``",
    "”": "''", "–": "--", "—": "--", "…": "...", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "£": "#",
    "€": "$", "¢": "cents",
}  # fmt: skip
# Pattern, and what becomes of its match. Of a match with a group `token` only that is taken, but the whole match
# competes for being the longest.
_RULES: list[tuple[re.Pattern[str], Callable[[str], list[str]]]] = [
    (re.compile(pattern, re.IGNORECASE), tokens)
    for pattern, tokens in (
        (rf"(?:cannot|gonna|gotta|lemme|gimme|wanna){_END}", _cut(3)),
        (rf"'(?:tis|twas){_END}", _cut(2)),
        (rf"(?:{_WITH_APOSTROPHE}){_END}", _is),
        (r"(?P<token>[a-z]*[a-mo-z])n't", _is),
        (rf"n't|'n'|'(?:[smd]|re|ve|ll){_END}|[yj]'(?={_LETTER})", _is),
        (rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*", _is),
        (rf"{_ALNUM}+(?:-{_ALNUM}+)*", _is),
        (r"[a-z0-9]+(?:/[a-z0-9]+|-[a-z][a-z0-9]*)*", _is),
        (r"[a-z0-9][a-z0-9.,]*(?:-(?:(?:[a-z]\.){2,}|[a-z0-9]+))+", _is),
        (r"(?-i:[A-Z]+(?:[+&][A-Z]+)+)", _is),  # AT&T
        (rf"{_ALNUM}+(?:[-_]+{_ALNUM}+)*_+{_ALNUM}+", _is),
        (r"[a-z](?:\.[a-z])*\.", _is),
        (rf"(?:{_ABBREVIATIONS})\.", _is),
        (rf"(?P<token>{_LETTER}{_ALNUM}*\.)[,;:]", _is),
        (r"(?P<token>(?:nos?|figs?|pp?|art|ca)\.)[0-9]", _is),
        (r"[-+]?(?:[0-9]*(?:[.:,][0-9]+)+|[0-9]+)", _is),
        (r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}|[0-9]{1,4}/[0-9]{1,4}", _is),
        (r"c\+\+|c#", _is),
        (r"https?://[^\s\"<>|()]+[^\s\"<>|().!?{},-]", _is),
        (r"(?:www\.)?(?:[\w-]+\.)+(?:com|net|org|edu)(?:/[^\s\"<>|()]+[^\s\"<>|().!?{},-])?", _is),
        (r"<?[a-z0-9][^\s\"<>|()@]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+>?", _is),
        (r"[@#][a-z]\w*", _is),
        (r"</?[a-z][\w:.-]*/?>", _is),
        (r"(?-i:[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9]))|-_-|\^_\^", _brackets),  # :-)
        (r"(?-i:[A-Z]*\$)", _is),  # US$
        (r"[?!]+|_+|<<|>>|-{5,}|\*{2,}|#{2,}|@{2,}", _is),
        (r"\.{3,}|-{2,4}|''|``", _none),
        ("&(?:amp|lt|gt|quot|apos);", _entity),
        (
            "[\x00-\x1f\x7f-\x9f\xab\xad\xbb\u0300-\u036f\u200b-\u200f\u20a5-\u20ab\u20ad-\u20bf\ufe00-\ufe0f\U00010000-\U0010ffff]",
            _none,
        ),
        (r"[^\w\s]|[¹²³¼½¾⁰-₟⅐-↉]", _sign),
    )
]
# Chunks are between white space, but for 3 1/2, telephone numbers, and the period of No. 5.
_PHONE = r"(?:\([0-9]{2,3}\) ?|\+{0,2}(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ]?[0-9]{3,5}(?![0-9])"
_NUMBERED = r"(?i:nos?|figs?|pp?|art|ca)\.(?=\s+[0-9])"
_SPACED = re.compile(rf"(?<![\w/.,-])(?:[0-9]{{1,4}} [0-9]{{1,4}}/[0-9]{{1,4}}(?![0-9])|{_PHONE}|{_NUMBERED})")


def ptb_tokenize(caption: str) -> list[str]:
    r"""Lower-case tokens of a caption without punctuation marks, as the COCO toolkit scores them.

        >>> ptb_tokenize("The dog isn't happy; it's (really) a t-shirt.")
        ['the', 'dog', 'is', "n't", 'happy', 'it', "'s", '-lrb-', 'really', '-rrb-', 'a', 't-shirt']

    Raises:
        ValueError: If the caption is no text.
    """
    if not isinstance(caption, str):
        raise ValueError(f"A caption must be text, got {caption!r}.")
    if not any(map(str.isdigit, caption)):  # nearly always
        return [token for chunk in caption.split() for token in _tokens(chunk)]
    tokens: list[str] = []
    position = 0
    for match in _SPACED.finditer(caption):
        tokens += [token for chunk in caption[position : match.start()].split() for token in _tokens(chunk)]
        tokens += _brackets(match[0].lower().replace(" ", "\xa0"))
        position = match.end()
    return tokens + [token for chunk in caption[position:].split() for token in _tokens(chunk)]


@lru_cache(maxsize=2**17)
def _tokens(chunk: str) -> tuple[str, ...]:
    """Tokens of a chunk without white space, those dropped left out."""
    tokens: list[str] = []
    position = 0
    chunk = chunk.translate(_APOSTROPHES)
    while position < len(chunk):
        matches = [(pattern.match(chunk, position), tokens_of) for pattern, tokens_of in _RULES]
        match, tokens_of = max(matches, key=lambda pair: -1 if pair[0] is None else pair[0].end())
        if match is None:
            raise AssertionError(f"no rule for {chunk[position:]!r}")
        group = "token" if "token" in match.re.groupindex else 0
        tokens += tokens_of(match[group])
        position = match.end(group)
    return tuple(token.lower() for token in tokens if token not in DROPPED)
