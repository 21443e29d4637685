"""What a text looks like, apart from what it means: a class for every token, and from their counts some features.

How many constraints, figures, clauses and sentences a request has says much of how hard it is, and says it in any
language. Case, blanks and line ends are left out on purpose: they change without changing what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Function words of English: their share tells running text from lists and code.
_FUNCTION_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "a about after all also am an and any are as at be been before but by can could did do does for from had has "
        "have he her his how i if in into is it its just me more my no not of on or our out she should so some than "
        "that the their them then there they this to up us was we were what when where which who will with would you "
        "your",
    )
)
_PERSONAL = frozenset(("i", "me", "my", "mine", "we", "us", "our", "you", "your", "he", "she", "they"))
_MARKS = (",，、،", ".!。！؟।", "?？", ":;：；", "()[]{}（）", "'\"“”‘’«»", "=<>/\\_*+#`|^~&@", "$%€£¥", "-–—")
CLASSES = 9 + len(_MARKS)
_WORD, _CONTINUED, _DIGITS, _FUNCTION, _PERSON, _FOREIGN, _UNKNOWN, _LONG, _CHARS = range(9)
_SENTENCE = 9 + 1  # the class of _MARKS[1]
FEATURES = 2 * CLASSES + 4

Vectors = NDArray[np.float32]


def token_classes(vocabulary: Mapping[str, int], unknown: str = "[UNK]", prefix: str = "##") -> Vectors:
    """(len(vocabulary), CLASSES) of 0 and 1, but for the number of characters in the column ``_CHARS``."""
    classes = np.zeros((len(vocabulary), CLASSES), dtype=np.float32)
    for token, row in vocabulary.items():
        text = token.removeprefix(prefix)
        is_word = text[:1].isalnum() and token != unknown
        classes[row, _WORD] = is_word and token == text
        classes[row, _CONTINUED] = is_word and token != text
        classes[row, _DIGITS] = text.isdigit()
        classes[row, _FUNCTION] = token in _FUNCTION_WORDS
        classes[row, _PERSON] = token in _PERSONAL
        classes[row, _FOREIGN] = is_word and not text.isascii()
        classes[row, _UNKNOWN] = token == unknown
        classes[row, _LONG] = is_word and len(text) > 8
        classes[row, _CHARS] = len(text) if is_word else 0
        for number, marks in enumerate(_MARKS, 9):
            classes[row, number] = token in marks
    return classes


def surface(counts: Vectors, tokens: int, distinct: int) -> Vectors:
    """Features (FEATURES,) of a text of ``tokens`` tokens, ``distinct`` different ones, from the sums of their classes:
    logarithms of counts, shares of tokens, the length, variety, characters a word and words a sentence."""
    n = max(tokens, 1)
    words = max(float(counts[_WORD]), 1.0)
    rest = (
        np.log1p(n),
        distinct / n,
        float(counts[_CHARS]) / words,
        np.log1p(words / (1.0 + float(counts[_SENTENCE]))),
    )
    return np.concatenate([np.log1p(counts), counts / np.float32(n), np.array(rest, dtype=np.float32)])
