"""A Trainer, or what is made from one, that takes a step when it is told."""

from transformers import TrainerCallback

NEVER = 1_000_000


def settings(job, rows):
    """The words of TrainingArguments for a job; `rows`: documents or windows of a micro-batch."""
    return {
        "output_dir": job.out,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": job.accumulate,
        "max_steps": NEVER,
        "learning_rate": job.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": job.betas[0],
        "adam_beta2": job.betas[1],
        "weight_decay": job.decay,
        "max_grad_norm": job.clip,
        "bf16": job.autocast,
        "use_cpu": True,
        # the model brings it already
        "gradient_checkpointing": job.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job.seed,
    }


def watch(kind, turns):
    """A class like `kind` that counts what goes through the model and waits after each step."""

    class Watched(kind):
        """Counts in `training_step`: batches are fetched ahead of it."""

        tokens = slots = 0
        loss = 0.0

        def __init__(self, *args, **words):
            super().__init__(*args, **words)
            self.add_callback(Turn(self))

        def training_step(self, model, inputs, *args, **words):
            """One micro-batch."""
            self.slots += inputs["input_ids"].numel()
            self.tokens += int((inputs["labels"][:, 1:] != -100).sum())
            loss = super().training_step(model, inputs, *args, **words)
            self.loss += float(loss)
            return loss

    class Turn(TrainerCallback):
        """Waits."""

        def __init__(self, trainer):
            self.trainer = trainer

        def on_train_begin(self, args, state, control, **words):
            """All is loaded."""
            turns.begin()

        def on_step_end(self, args, state, control, **words):
            """A step was taken."""
            of = self.trainer
            control.should_training_stop = not turns.step(of.tokens, of.slots, of.loss)
            of.tokens = of.slots = 0
            of.loss = 0.0

    return Watched
