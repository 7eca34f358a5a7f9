"""Adapts Hugging Face's Trainer and its subclasses to `bench.lockstep`."""

from transformers import TrainerCallback

UNLIMITED_STEPS = 1_000_000


def training_arguments(job, micro_batch_size):
    """Arguments of TrainingArguments for a job; a micro-batch counts documents or windows."""
    return {
        "output_dir": job.out,
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": job.accumulate,
        "max_steps": UNLIMITED_STEPS,
        "learning_rate": job.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": job.betas[0],
        "adam_beta2": job.betas[1],
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.max_grad_norm,
        "bf16": job.autocast,
        "use_cpu": True,
        # the same as in Job.make_model
        "gradient_checkpointing": job.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job.seed,
    }


def lockstep_trainer(base, lockstep):
    """A subclass of a Trainer class that counts tokens and waits after each optimizer step."""

    class LockstepTrainer(base):
        """Counts in `training_step`, because batches are fetched ahead of it."""

        tokens = slots = 0
        loss = 0.0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(LockstepCallback(self))

        def training_step(self, model, inputs, *args, **kwargs):
            """Train on one micro-batch."""
            self.slots += inputs["input_ids"].numel()
            self.tokens += int((inputs["labels"][:, 1:] != -100).sum())
            loss = super().training_step(model, inputs, *args, **kwargs)
            self.loss += float(loss)
            return loss

    class LockstepCallback(TrainerCallback):
        """Reports each step and waits for the next."""

        def __init__(self, trainer):
            self.trainer = trainer

        def on_train_begin(self, args, state, control, **kwargs):
            """Report that everything is loaded."""
            lockstep.begin()

        def on_step_end(self, args, state, control, **kwargs):
            """Report the step and reset the counts."""
            trainer = self.trainer
            go_on = lockstep.step(trainer.tokens, trainer.slots, trainer.loss)
            control.should_training_stop = not go_on
            trainer.tokens = trainer.slots = 0
            trainer.loss = 0.0

    return LockstepTrainer
