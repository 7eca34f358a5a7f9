"""Hugging Face datasets as the student project used it: map, pad and truncate to 512, save.

datasets.py INPUT.jsonl.zst OUT TOKENIZER_FOLDER WORKERS
"""

import sys

from datasets import load_dataset
from transformers import AutoTokenizer

PADDED_LENGTH = 512

if __name__ == "__main__":
    source, out, folder, workers = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token

    def encode(batch):
        """Encode a batch of texts to exactly 512 tokens each."""
        return tokenizer(
            batch["text"], padding="max_length", truncation=True, max_length=PADDED_LENGTH
        )

    data = load_dataset("json", data_files=source, split="train", cache_dir=f"{out}/cache")
    data = data.map(encode, batched=True, num_proc=int(workers), remove_columns=data.column_names)
    data.save_to_disk(f"{out}/ids")
