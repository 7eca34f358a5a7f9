"""How fast this machine is: CPU seconds that zstd takes to decompress a GB of text.

    python -m bench.machine

The text is made here: 200 MB of words, as frequent as in prose (Zipf), compressed at level 3. The
figure makes the run times of tests on two machines comparable.
"""

from __future__ import annotations

import argparse
import random
import time

import zstandard

TEXT_BYTES = 200_000_000
BLOCK_BYTES = 10_000_000
VOCABULARY = 20_000
LEVEL = 3


def make_text(size: int, seed: int) -> bytes:
    """Text of `size` bytes; the same arguments give the same text."""
    generator = random.Random(seed)
    lengths = generator.choices(range(2, 11), k=VOCABULARY)
    words = ["".join(generator.choices("etaoinshrdlucmfwypvbgk", k=n)) for n in lengths]
    weights = [1 / rank for rank in range(1, VOCABULARY + 1)]
    return " ".join(generator.choices(words, weights, k=size // 4)).encode()[:size]


def measure(size: int) -> tuple[float, float]:
    """CPU seconds per GB, and how many times smaller the compressed text is."""
    compressor, decompressor = zstandard.ZstdCompressor(LEVEL), zstandard.ZstdDecompressor()
    text = make_text(min(size, BLOCK_BYTES), seed=0)
    frame = compressor.compress(text)
    times = max(1, size // len(text))
    started = time.process_time()
    for _ in range(times):
        decompressor.decompress(frame)
    return (time.process_time() - started) / (times * len(text)) * 1e9, len(text) / len(frame)


def main() -> None:
    """Print the figure."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    seconds, ratio = measure(TEXT_BYTES)
    print(f"zstd decode: {seconds:.2f} CPU s/GB (text compressed {ratio:.1f} times)")


if __name__ == "__main__":
    main()
