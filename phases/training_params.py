"""Parameters of the training steps, checked before a session starts: nothing heavy is imported."""

from pydantic import BaseModel, ConfigDict, Field

from phases.data_checks import DataParams


class TrainingParams(BaseModel):
    """Optimiser settings, in the field's usual names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    quantization: str = Field(pattern="^(none|nf4)$")
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(ge=1)
    max_length: int = Field(ge=8)
    gradient_checkpointing: bool
    save_steps: int = Field(ge=1)


class SftParams(TrainingParams, DataParams):
    """QLoRA and optimiser settings, and what the data is held against once more."""

    r: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)


class DpoParams(TrainingParams, DataParams):
    """Optimiser settings; rank, alpha and target modules are the sft adapter's own.

    And what the pairs are held against once more.
    """

    beta: float = Field(gt=0)
    """How strongly the policy is held to the sft adapter; TRL's and the paper's beta."""
