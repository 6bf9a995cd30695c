"""Answers: `extract` finds the answer in a text, `compare` decides whether two answers are the
same, `choice` finds which option a text picks. Rewards, evaluation and voting all use these
three."""

from data.answers.comparison import Verdict, choice, compare
from data.answers.extraction import extract

__all__ = ["Verdict", "choice", "compare", "extract"]
