"""Prompt cleaning as Wan does it before tokenising (``wan/modules/tokenizers.py``)."""

import html
import re

import ftfy


def clean_prompt(text: str) -> str:
    """Text with broken Unicode repaired, HTML entities resolved, runs of white space made one
    space and none at either end.

    Entities are resolved twice, as in Wan: "&amp;lt;" becomes "<".
    """
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", repaired).strip()
