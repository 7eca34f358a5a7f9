"""TRL's SFTTrainer with its packing (best fit; what is longer than a window is split, not cut off).

sft_trainer.py JOB.json
"""

import sys

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from bench.job import read
from bench.lockstep import Turns
from bench.trainer_adapter import settings, watch

if __name__ == "__main__":
    turns, job = Turns(), read(sys.argv[1])
    model = job.learner()
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = watch(SFTTrainer, turns)(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            **settings(job, job.packed),
            packing=True,
            packing_strategy="bfd_split",
            max_length=job.length,
        ),
        train_dataset=Dataset.from_dict({"input_ids": job.sequences()}),
    )
    trainer.train()
    model.save_pretrained(job.out)
