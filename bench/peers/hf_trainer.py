"""Hugging Face's Trainer, padded (and truncated to 512) or packed with its own collator.

    hf_trainer.py JOB.json

Packed means DataCollatorWithFlattening: whole documents concatenated in one row, with position ids
that restart at each document and no mask. On a CPU this is correct only for models of the Llama
family.
"""

import sys

from torch.utils.data import Dataset
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from bench.job import pad, read
from bench.lockstep import Lockstep
from bench.trainer_adapter import lockstep_trainer, training_arguments


class Documents(Dataset):
    """Tokenized documents as a torch data set."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index]}


if __name__ == "__main__":
    lockstep, job = Lockstep(), read(sys.argv[1])
    documents, model = job.sequences(), job.make_model()

    def collate(rows):
        """A batch padded to the length of its longest document."""
        texts = [row["input_ids"] for row in rows]
        length = min(job.padded_length, max(map(len, texts)))
        ids, mask, labels = pad(texts, length, documents[0][-1])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    packed = job.kind == "trainer-packed"
    micro_batch_size = job.flat_documents if packed else job.padded_windows
    trainer = lockstep_trainer(Trainer, lockstep)(
        model=model,
        args=TrainingArguments(**training_arguments(job, micro_batch_size)),
        train_dataset=Documents(documents),
        data_collator=DataCollatorWithFlattening() if packed else collate,
    )
    trainer.train()
    model.save_pretrained(job.out)
