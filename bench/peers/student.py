"""The student project's loop: each document cut off and padded to 512 tokens, autocast, AdamW.

    student.py JOB.json

As it was, but for one fault: it zeroed the gradients before every micro-batch, so accumulation did
nothing. Here it does what it says, so that what is compared is the speed.
"""

import sys
from contextlib import nullcontext

import torch

from bench.job import forever, pad, read
from bench.lockstep import Turns


def make_optimizer(job, parameters):
    """The optimizer of that name."""
    if job.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=job.lr)
    settings = {"lr": job.lr, "betas": job.betas, "weight_decay": job.decay}
    if job.optimizer == "adamw8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)


if __name__ == "__main__":
    turns, job = Turns(), read(sys.argv[1])
    documents, model = job.sequences(), job.learner()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(job, parameters)
    order = forever(len(documents), job.seed)
    model.train()
    turns.begin()
    going = True
    while going:
        tokens, total = 0, 0.0
        for _ in range(job.accumulate):
            rows = [documents[next(order)] for _ in range(job.windows)]
            ids, mask, labels = pad(rows, job.width, documents[0][-1])
            half = torch.autocast("cpu", dtype=torch.bfloat16) if job.autocast else nullcontext()
            with half:
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            (loss / job.accumulate).backward()
            total += loss.item() / job.accumulate
            tokens += int((labels[:, 1:] != -100).sum())
        torch.nn.utils.clip_grad_norm_(parameters, job.clip)
        optimizer.step()
        optimizer.zero_grad()
        going = turns.step(tokens, job.accumulate * job.windows * job.width, total)
    model.save_pretrained(job.out)
