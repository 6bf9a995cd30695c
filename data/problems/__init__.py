"""Problem files in, training sets and benchmarks out."""
