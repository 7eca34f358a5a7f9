"""Megatron's fast path, as its tool does it: gigatoken on the whole file in memory.

    megatron_fast.py INPUT.jsonl OUT TOKENIZER_FOLDER WORKERS

PyPI has megatron-core, not `tools/preprocess_data_fast.py`. That encodes the file in one call,
appends the end tokens with awkward, and hands the documents to the builder; so does this, but
writes all in one piece where the tool has threads, which is no slower.
"""

import sys
from pathlib import Path

import awkward
import gigatoken
import numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

END = 50256

if __name__ == "__main__":
    source, out, folder, _ = sys.argv[1:]
    Path(out, "ids").mkdir(parents=True)
    tokenizer = gigatoken.Tokenizer(f"{folder}/tokenizer.json")
    ids = tokenizer.encode_files(gigatoken.JsonlFileSource([source], "text"))
    ends = awkward.singletons(awkward.Array(numpy.full(len(ids), END, dtype=numpy.uint32)))
    ids = awkward.concatenate([ids, ends], axis=1)
    builder = IndexedDatasetBuilder(f"{out}/ids/text.bin", dtype=numpy.uint16)
    lengths = awkward.to_numpy(awkward.num(ids)).tolist()
    builder.add_document(awkward.to_numpy(awkward.flatten(ids)), lengths)
    # that made one document of them; the index has one a line
    builder.document_indices = list(range(len(lengths) + 1))
    builder.finalize(f"{out}/ids/text.idx")
