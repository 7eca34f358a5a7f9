"""TRL's SFTTrainer with packing (best fit; longer documents are split, not truncated).

sft_trainer.py JOB.json
"""

import sys

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from bench.job import read
from bench.lockstep import Lockstep
from bench.trainer_adapter import lockstep_trainer, training_arguments

if __name__ == "__main__":
    lockstep, job = Lockstep(), read(sys.argv[1])
    model = job.make_model()
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = lockstep_trainer(SFTTrainer, lockstep)(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            **training_arguments(job, job.packed_windows),
            packing=True,
            packing_strategy="bfd_split",
            max_length=job.sequence_length,
        ),
        train_dataset=Dataset.from_dict({"input_ids": job.sequences()}),
    )
    trainer.train()
    model.save_pretrained(job.out)
