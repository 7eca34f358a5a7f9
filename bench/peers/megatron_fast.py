"""Megatron's fast path: gigatoken on the whole file in memory.

    megatron_fast.py INPUT.jsonl OUT TOKENIZER_FOLDER WORKERS

PyPI has megatron-core, but not `tools/preprocess_data_fast.py`. Like that script, this one encodes
the file in one call, appends the end tokens with awkward and passes the documents to the builder.
It writes everything in one call where the script uses threads; that is not slower.
"""

import sys
from pathlib import Path

import awkward
import gigatoken
import numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

END_ID = 50256

if __name__ == "__main__":
    source, out, folder, _ = sys.argv[1:]
    Path(out, "ids").mkdir(parents=True)
    tokenizer = gigatoken.Tokenizer(f"{folder}/tokenizer.json")
    ids = tokenizer.encode_files(gigatoken.JsonlFileSource([source], "text"))
    ends = awkward.singletons(awkward.Array(numpy.full(len(ids), END_ID, dtype=numpy.uint32)))
    ids = awkward.concatenate([ids, ends], axis=1)
    builder = IndexedDatasetBuilder(f"{out}/ids/text.bin", dtype=numpy.uint16)
    lengths = awkward.to_numpy(awkward.num(ids)).tolist()
    builder.add_document(awkward.to_numpy(awkward.flatten(ids)), lengths)
    # The builder saw one document; the index should have one per line.
    builder.document_indices = list(range(len(lengths) + 1))
    builder.finalize(f"{out}/ids/text.idx")
