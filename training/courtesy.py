"""The same prompt, asked politely: copies of training prompts with a greeting and thanks, which change nothing of what
is asked and must not change its tier."""

from __future__ import annotations

import numpy as np

from training.dataset import Table

SHARE = 0.7
_BEFORE = (
    "Hi, ",
    "Hi there! ",
    "Hello, ",
    "Hey, ",
    "Good morning. ",
    "Dear assistant, ",
    "Could you please help me with this? ",
    "Please: ",
    "Quick question: ",
    "I hope you are well. ",
    "Sorry to bother you. ",
    "Excuse me, ",
    "Hola, ",
    "Bonjour, ",
    "Guten Tag, ",
    "Olá, ",
    "Ciao, ",
    "こんにちは。",
    "你好，",
    "안녕하세요. ",
    "Здравствуйте! ",
    "مرحبا، ",
    "नमस्ते, ",
    "Merhaba, ",
)
_AFTER = (
    " Thanks!",
    " Thank you.",
    " thx",
    " Thanks a lot in advance.",
    " Many thanks and kind regards",
    " Cheers",
    " please",
    " I appreciate your help.",
    " That would be great.",
    " Thank you so much for your time!",
    " Gracias.",
    " Merci beaucoup.",
    " Vielen Dank!",
    " Obrigado!",
    " Grazie.",
    "ありがとうございます。",
    "谢谢！",
    " 감사합니다.",
    " Спасибо!",
    " شكرا",
    " धन्यवाद",
)


def polite(table: Table, *, seed: int) -> tuple[Table, np.ndarray]:
    """Polite copies of ``SHARE`` of the rows, and the numbers of the rows (m,) they were made of."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(len(table)) < SHARE)
    copies = table.rows(np.isin(np.arange(len(table)), rows))
    texts = []
    for text in copies.texts:
        before, after = rng.choice(_BEFORE), rng.choice(_AFTER)
        kind = rng.integers(3)
        texts.append(f"{before if kind != 1 else ''}{text}{after if kind != 0 else ''}")
    return copies.with_texts(texts), rows
