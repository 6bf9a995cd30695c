"""Running programs that a model wrote, and checking proofs."""
