"""The one door for answers: `extract`, `compare`, `choice`, and the rules of the paper's own evaluation."""

from data.answers.comparison import Verdict, choice, compare, extract, paper_equal, paper_extract

__all__ = ["Verdict", "choice", "compare", "extract", "paper_equal", "paper_extract"]
