"""python -m data.mine: the whole data engine (loop.py)."""

from data import run_cli
from data.mine.loop import main

if __name__ == "__main__":
    run_cli(main)
