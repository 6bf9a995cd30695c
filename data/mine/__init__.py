"""The data engine (paper 2.1): from raw web crawls to a mathematical corpus."""
