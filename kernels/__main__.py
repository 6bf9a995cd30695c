"""Prove the accelerators and record the fingerprints of their definitions: python -m kernels

Run it after an edit of a definition and of its accelerators. It writes kernels/fingerprints.json where definition and
accelerator agree.
"""

from kernels import record


def main() -> None:
    print(f"recorded {len(record())} accelerators")


if __name__ == "__main__":
    main()
