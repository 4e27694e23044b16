"""Training of the language model on packed rows: Hugging Face Trainer with DeepSpeed."""

from cslm.training.trainer import TrainingConfig, train

__all__ = ["TrainingConfig", "train"]
