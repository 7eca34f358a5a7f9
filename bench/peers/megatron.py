"""Megatron's tokenization: megatron-core's IndexedDatasetBuilder with a minimal driver.

    megatron.py INPUT.jsonl OUT TOKENIZER_FOLDER WORKERS

PyPI has the library, but not `tools/preprocess_data.py`. Like that script, a pool of processes
parses lines with json, encodes each text with the Hugging Face tokenizer and appends the end token;
the main process writes.
"""

import json
import multiprocessing
import sys
from pathlib import Path

import numpy
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tokenizers import Tokenizer

END_ID = 50256
tokenizer = None


def load(folder):
    """Load the tokenizer in a process of the pool."""
    global tokenizer
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")


def encode(line):
    """The token ids of a line of jsonl."""
    return [*tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids, END_ID]


if __name__ == "__main__":
    source, out, folder, workers = sys.argv[1:]
    Path(out, "ids").mkdir(parents=True)
    builder = IndexedDatasetBuilder(f"{out}/ids/text.bin", dtype=numpy.uint16)
    pool = multiprocessing.Pool(int(workers), initializer=load, initargs=(folder,))
    with pool, open(source, encoding="utf-8") as file:
        for ids in pool.imap(encode, file, 32):
            builder.add_document(torch.IntTensor(ids), [len(ids)])
        pool.close()
        pool.join()
    builder.finalize(f"{out}/ids/text.idx")
