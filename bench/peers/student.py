"""The student project's loop: documents truncated and padded to 512 tokens, autocast, AdamW.

    student.py JOB.json

One fault of the original is fixed: it zeroed the gradients before every micro-batch, so gradient
accumulation had no effect. With the fix both sides do the same work, and only speed is compared.
"""

import sys
from contextlib import nullcontext

import torch

from bench.job import pad, read, shuffled_indices
from bench.lockstep import Lockstep


def make_optimizer(job, parameters):
    """The optimizer that the job names."""
    if job.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=job.lr)
    settings = {"lr": job.lr, "betas": job.betas, "weight_decay": job.weight_decay}
    if job.optimizer == "adamw8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


if __name__ == "__main__":
    lockstep, job = Lockstep(), read(sys.argv[1])
    documents, model = job.sequences(), job.make_model()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(job, parameters)
    order = shuffled_indices(len(documents), job.seed)
    slots = job.accumulate * job.padded_windows * job.padded_length
    model.train()
    lockstep.begin()
    go_on = True
    while go_on:
        tokens, total = 0, 0.0
        for _ in range(job.accumulate):
            rows = [documents[next(order)] for _ in range(job.padded_windows)]
            ids, mask, labels = pad(rows, job.padded_length, documents[0][-1])
            autocast = torch.autocast("cpu", torch.bfloat16) if job.autocast else nullcontext()
            with autocast:
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            (loss / job.accumulate).backward()
            total += loss.item() / job.accumulate
            tokens += int((labels[:, 1:] != -100).sum())
        torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        go_on = lockstep.step(tokens, slots, total)
    model.save_pretrained(job.out)
