"""Training arguments of all systems: transformers' own, with early stopping, checked before anything is computed."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

# Given by the run itself (where it writes, what it does), or fixed by the training arguments of a system.
FIXED = {
    *("output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict"),
    *("dataloader_drop_last", "remove_unused_columns", "dataloader_persistent_workers", "label_names"),
}


@dataclass
class RecipeTrainingArguments(TrainingArguments):
    r"""`TrainingArguments` of a recipe.

    Args:
        early_stopping_patience (`int`, *optional*): Stop after this many evaluations without a better one.

    Raises:
        ValueError: If there is nothing to train, or early stopping without evaluations.
    """

    early_stopping_patience: int | None = field(default=None)

    def __post_init__(self):
        self.remove_unused_columns = False
        self.dataloader_persistent_workers = False  # workers that stay would not hear of the next epoch's captions
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise ValueError(f"`num_train_epochs` must be above 0, got {self.num_train_epochs}.")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        super().__post_init__()
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                raise ValueError(f"`early_stopping_patience` must be 1 or more, got {self.early_stopping_patience}.")
            if self.eval_strategy == "no":
                raise ValueError("`early_stopping_patience` needs evaluations; set `eval_strategy`, such as epoch.")
