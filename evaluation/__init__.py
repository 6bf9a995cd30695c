"""Evaluation: solving problems, judging answers, figures, reports, the audit."""
