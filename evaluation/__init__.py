"""What eval.py stands on: asking, reading, counting, comparing."""
