"""What MODEL means to the verbs of ``bitqwen kernels``: a size, a file, a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.kernels.products import Product
    from bitqwen.models.qwen2 import Qwen2Config


def config_of(model: str | None, config: Path | None = None) -> tuple[Qwen2Config, str]:
    """The hyperparameters asked for, and what to call the model.

    Raises:
        UsageError: neither MODEL nor --config, both, or a size that there is not.
    """
    from bitqwen.checkpoints.configs import read_config, read_config_file
    from bitqwen.kernels import SIZES, preset
    from bitqwen.models.registry import config_from_hf

    if (model is None) == (config is None):
        raise UsageError(
            "Give either MODEL or --config FILE.", hint="MODEL may be a size: " + ", ".join(SIZES)
        )
    if config is not None:
        return config_from_hf(read_config_file(config), source=str(config)), config.name
    assert model is not None
    if "/" not in model and not Path(model).exists():
        return preset(model), f"Qwen2.5-{model.upper()}"
    return config_from_hf(read_config(model), source=model), model.rstrip("/").rsplit("/", 1)[-1]


def products_of(model: str, scheme: str | None) -> tuple[list[Product], str]:
    """The products of a model, and what to call it.

    Args:
        model: a GGUF file, which has its own types; anything else is thought of in ``scheme``.
        scheme: by default w4.

    Raises:
        UsageError: a scheme for a GGUF file, or one that there is not.
    """
    from bitqwen.gguf import GGUFFile
    from bitqwen.kernels import products

    if Path(model).is_file():
        if scheme is not None:
            raise UsageError(
                f"{model} has its own types.", hint="Leave --scheme out, or give a size such as 7B."
            )
        return products.of_file(GGUFFile(model)), Path(model).name
    config, name = config_of(model)
    return products.of_config(config, scheme or "w4"), f"{name} in {scheme or 'w4'}"
