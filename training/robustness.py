"""How many tiers stay as they were when a prompt is written otherwise and asks the same: python -m training.robustness

Held-out prompts with a typing error in every 25 words, in lower case, in capitals, with politeness added, with other
blanks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from router_ml.classifier import ComplexityClassifier
from router_ml.errors import RouterError
from training.dataset import read_labelled

PROMPTS = 500
_WORDS_A_TYPO = 25

Change = Callable[[str, np.random.Generator], str]


def typos(text: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters swapped in one of every 25 words, at least in one."""
    words = re.split(r"(\s+)", text)
    long = [number for number, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for number in rng.permutation(long)[: max(1, len(long) // _WORDS_A_TYPO)]:
        word, at = words[number], int(rng.integers(1, len(words[number]) - 1))
        words[number] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return "".join(words)


CHANGES: dict[str, Change] = {
    "typos": typos,
    "lower case": lambda text, _: text.lower(),
    "capitals": lambda text, _: text.upper(),
    "politeness": lambda text, _: f"Hello! {text} Thank you very much.",
    "blanks": lambda text, _: "  " + re.sub(r" ", "  ", text) + "\n",
}


def unchanged(classifier: ComplexityClassifier, texts: list[str], seed: int = 0) -> dict[str, float]:
    """Share of tiers that each change leaves as they were."""
    rng = np.random.default_rng(seed)
    before = classifier.predict(texts)
    return {
        name: float((classifier.predict([change(text, rng) for text in texts]) == before).mean())
        for name, change in CHANGES.items()
    }


def main() -> int:
    """Exit status 0, or 1 where prompts or artefact cannot be read."""
    try:
        held = read_labelled(Path("data/prompts.jsonl"))[1].texts
        texts = held[:: max(1, len(held) // PROMPTS)][:PROMPTS]
        shares = unchanged(ComplexityClassifier.load(), texts)
    except RouterError as exc:
        print(f"refused: {exc}", file=sys.stderr)
        return 1
    print(f"{len(texts)} held-out prompts, tiers unchanged:")
    for name, share in shares.items():
        print(f"  {name:11} {share:.1%}")
    print(f"  {'mean':11} {np.mean(list(shares.values())):.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
