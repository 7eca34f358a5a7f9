"""Hugging Face's Trainer, padded (and cut to 512) or packed by its own collator.

    hf_trainer.py JOB.json

Packed means DataCollatorWithFlattening: whole documents end to end in one row, position ids that
begin again with each, and no mask, which on a CPU is right for models of the Llama family only.
"""

import sys

from torch.utils.data import Dataset
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from bench.job import pad, read
from bench.lockstep import Turns
from bench.trainer_adapter import settings, watch


class Documents(Dataset):
    """Documents as rows that a Trainer takes."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index]}


if __name__ == "__main__":
    turns, job = Turns(), read(sys.argv[1])
    documents, model = job.sequences(), job.learner()

    def collate(rows):
        """A padded batch, as wide as its longest document."""
        texts = [row["input_ids"] for row in rows]
        width = min(job.width, max(map(len, texts)))
        ids, mask, labels = pad(texts, width, documents[0][-1])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    packed = job.kind == "trainer-packed"
    trainer = watch(Trainer, turns)(
        model=model,
        args=TrainingArguments(**settings(job, job.flat if packed else job.windows)),
        train_dataset=Documents(documents),
        data_collator=DataCollatorWithFlattening() if packed else collate,
    )
    trainer.train()
    model.save_pretrained(job.out)
