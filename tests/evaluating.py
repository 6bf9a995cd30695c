"""What the tests of the evaluation share."""

from evaluation.metrics import summarize
from evaluation.solve import Solver


def evaluate(model, tokenizer, problems, format, sampling, progress=None, **solver):
    """(figures, records) of problems solved with a question alone."""
    solve = Solver(model, tokenizer, **solver).solve
    records = solve(problems, format, sampling, progress=progress)
    return summarize(records), records
