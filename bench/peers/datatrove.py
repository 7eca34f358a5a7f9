"""datatrove, set up as in its documentation: one local task per file, without shuffling.

datatrove.py INPUT.jsonl.zst OUT TOKENIZER_FOLDER WORKERS
"""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

if __name__ == "__main__":
    source, out, folder, workers = sys.argv[1:]
    path = Path(source)
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(path.parent), glob_pattern=path.name),
            DocumentTokenizer(
                output_folder=f"{out}/ids",
                tokenizer_name_or_path=f"{folder}/tokenizer.json",
                eos_token="<|endoftext|>",
                shuffle_documents=False,
            ),
        ],
        tasks=1,
        workers=int(workers),
        logging_dir=f"{out}/logs",
    ).run()
