"""Tokens of captions: the golden ones, and hand-made captions with what Stanford's PTBTokenizer 3.4.1 makes of them."""

import json

import pytest

from hf_grounding.metrics.ptb_tokenizer import ptb_tokenize

# Expected tokens: output of the Java tokeniser (`-preserveLines -lowerCase`), less the toolkit's punctuation list.
# A no-break space within a token is written `␣`.
CAPTIONS = {
    "Don't they won't, can't, I'm, you've, she'd, we'll, they're": (
        "do n't they wo n't ca n't i 'm you 've she 'd we 'll they 're"
    ),
    "DON'T SHE'S I'LL he'd've": "do n't she 's i 'll he 'd 've",
    "Cannot gonna gotta gimme lemme wanna": "can not gon na got ta gim me lem me wan na",
    "cannots gonnabe": "cannots gonnabe",
    "'tis 'Twas": "'t is 't was",
    "y'all d'you o'clock O'Brien Hawai'i ma'am": "y' all d'you o'clock o'brien hawai'i ma'am",
    "nor'easter 'cause ol' 'til": "nor'easter 'cause ol' 'til",
    "a boy's '60s rock 'n' roll, rock'n'roll 'em": "a boy 's '60s rock 'n' roll rock 'n' roll 'em",
    "the dogs' bowls, Jones's drive-thru's": "the dogs bowls jones 's drive-thru 's",
    "a \"red\" sign, 'stop' and ``go'' `so'": "a red sign stop and go so",
    "“smart” ‘single’": "smart single",
    "it\x92s a child\x92s": "it 's a child 's",
    "it’s a child’s toy and they don’t": "it 's a child 's toy and they do n't",
    "(a) [b] {c} (two words)": "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- -lrb- two words -rrb-",
    "a <tag> </b> 3 < 4": "a <tag> </b> 3 < 4",
    "3,000 at 7:30 with 2.5 and .5 and -4 or +1, 1,2,3 1.2.3": (
        "3,000 at 7:30 with 2.5 and .5 and -4 or +1 1,2,3 1.2.3"
    ),
    "1990s 1st 22nd 2nd-hand 7-eleven 10ft 4x4": "1990s 1st 22nd 2nd-hand 7-eleven 10ft 4x4",
    "$5, US$ 10, $1,000.00 £3 €4 ¥6": "$ 5 us$ 10 $ 1,000.00 # 3 $ 4 ¥ 6",
    "50¢ and 50% and 5 % of #1": "50 cents and 50 % and 5 % of # 1",
    "3 1/2 cups, 1/2 cup": "3␣1/2 cups 1/2 cup",
    "½ or 2¾": "1/2 or 2 3/4",
    "on 5/6/2010 or 12-31-99, 24/7": "on 5/6/2010 or 12-31-99 24/7",
    "call 555-1234 or 800-555-1234": "call 555-1234 or 800-555-1234",
    "call (800) 555-1234 or +49 30 1234567": "call -lrb-800-rrb-␣555-1234 or +49␣30␣1234567",
    "pears, etc. Mr. Smith, Dr. Who vs. St. Louis Inc.": "pears etc. mr. smith dr. who vs. st. louis inc.",
    "etc Mr Smith and Dr Who": "etc mr smith and dr who",
    "(etc.) etc., i.e. e.g., Ph.D. and B.A.": "-lrb- etc. -rrb- etc. i.e. e.g. ph.d. and b.a.",
    "Jan. 5 Feb. Sept. Mon. Calif. Ave. Jr.": "jan. 5 feb. sept. mon. calif. ave. jr.",
    "U.S. at 5 p.m. U.S.A J. F. K. N.Y.": "u.s. at 5 p.m. u.s.a j. f. k. n.y.",
    "max.": "max",
    "min. end.": "min end",
    "no. 5 No. 12 no.5 fig. 2 pp. 3 ca. 1900 p. 7": "no. 5 no. 12 no. 5 fig. 2 pp. 3 ca. 1900 p. 7",
    "no. five, and no.": "no five and no",
    "end of sentence. Next one.Third 10.": "end of sentence next one.third 10",
    "mail a.b@c-d.com or me@x.org.": "mail a.b@c-d.com or me@x.org",
    "see www.x.org, http://x.com/a?b=c or example.com/path.": "see www.x.org http://x.com/a?b=c or example.com/path",
    "@home #hashtag @user_name": "@home #hashtag @user_name",
    "smile :) :-) ;) :( =) :D ^_^ :-/": "smile :-rrb- :--rrb- ;-rrb- :-lrb- =-rrb- :d ^_^ /",
    "wait... what.. no.... yes… so . . . on": "wait what no yes so on",
    "a...b a…b": "a. b a b",
    "a dash - here -- there --- and ----- or – en — em-dash mid—word a--b": (
        "a dash here there and ----- or en em-dash mid word a b"
    ),
    "AT&T, R&B, M&M's, black & white, black&white": "at&t r&b m&m 's black & white black & white",
    "&amp; &lt; &quot;": "& <",
    "t-shirt T-Shirt x-ray mother-in-law 10-year-old pre-2000": (
        "t-shirt t-shirt x-ray mother-in-law 10-year-old pre-2000"
    ),
    "-dash- self-": "dash self",
    "and/or w/ b/c a / b red/white/blue": "and/or w / b/c a / b red/white/blue",
    "snake_case __init__ ___ a*b ** ~ ^ | \\ = +": "snake_case __ init __ ___ a * b ** ~ ^ | \\ = +",
    'C++ C# F-16 5\'10" 6"': "c++ c# f-16 5 10 6",
    "what?! no!! really??? ?!? so! why?": "what ?! no !! really ??? ?!? so why",
    "a;b:c,d e , f ,g": "a b c d e f g",
    "café naïve Zürich ÉCOLE cafe\u0301 straße": "café naïve zürich école cafe\u0301 straße",
    "日本語 текст Ελληνικά": "日本語 текст ελληνικά",
    "20°C m² ™ © ¿qué?": "20 ° c m ² ™ © ¿ qué",
    "a dog 🐶 runs 👍🏽 fast😀": "a dog runs fast",
    "tab\tseparated  double\xa0no-break\u3000wide\u2003em ": "tab separated double no-break wide em",
    "...": "",
    "' '' ` `` \" - -- ; : , . ? !": "",
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_tokens_are_those_of_the_java_tokeniser(caption):
    assert ptb_tokenize(caption) == [token.replace("␣", "\xa0") for token in CAPTIONS[caption].split()]


def test_golden_tokens(golden_dir):
    golden = json.loads((golden_dir / "ptb_tokens.json").read_text())
    tokens = {sentence: ptb_tokenize(sentence) for sentence in golden["sentences"]}
    assert tokens == dict(zip(golden["sentences"], golden["tokens"], strict=True))


def test_golden_captions_of_the_metrics(golden_dir):
    golden = json.loads((golden_dir / "caption_metrics.json").read_text())
    assert [" ".join(ptb_tokenize(text)) for text in golden["hypotheses"]] == golden["tokenized_hypotheses"]
    for captions, expected in zip(golden["references"], golden["tokenized_references"], strict=True):
        assert [" ".join(ptb_tokenize(text)) for text in captions] == expected


@pytest.mark.parametrize("caption", ["", " ", "\n", "\t \r\n\xa0\u3000"])
def test_nothing_has_no_tokens(caption):
    assert ptb_tokenize(caption) == []


@pytest.mark.parametrize(
    "space", ["\n", "\t", "\r\n", "  ", "\xa0", "\u2003", "\u3000", "\x0b", "\x0c", "\u2028", "\x85"]
)
def test_every_white_space_separates_and_a_line_break_is_one(space):
    assert ptb_tokenize(f"{space}A dog{space}isn't 1st.{space}") == ["a", "dog", "is", "n't", "1st"]


@pytest.mark.parametrize("caption", [None, 3, float("nan"), b"a dog", ["a", "dog"]])
def test_what_is_no_text_is_named(caption):
    with pytest.raises(ValueError, match="must be text") as error:
        ptb_tokenize(caption)
    assert repr(caption) in str(error.value)


def test_a_caller_may_change_the_list_it_got():
    ptb_tokenize("a cached caption").clear()
    assert ptb_tokenize("a cached caption") == ["a", "cached", "caption"]
