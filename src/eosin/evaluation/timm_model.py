"""A pretrained model by its timm name, as a baseline."""

from __future__ import annotations

from torch import nn

from eosin.errors import TransientError, UserError
from eosin.models.arch import import_timm
from eosin.records import TeacherCard


def load_timm(name: str) -> tuple[nn.Module, TeacherCard]:
    """`name` with its published weights, its own input size and normalisation.

    Raises `UserError` for a name timm does not know, `TransientError` where the weights cannot be had.
    """
    timm = import_timm()
    try:
        module = timm.create_model(name, pretrained=True, num_classes=0)
    except RuntimeError as error:
        raise UserError(f"timm has no model {name} with weights: {error}") from error
    except Exception as error:  # whatever the hub's client raises without a network
        raise TransientError(
            f"the weights of {name} cannot be fetched: {type(error).__name__}: {error}",
            hint="allow access to huggingface.co, or fill HF_HOME beforehand; or leave the baseline out",
        ) from error
    data = timm.data.resolve_model_data_config(module)
    card = TeacherCard(
        name=f"timm:{name}",
        step=None,
        arch=name,
        arch_args={},
        img_px=data["input_size"][-1],
        num_features=int(module.num_features),
        mean=data["mean"],
        std=data["std"],
        mpp=(),
        weights_sha256="",
    )
    return module.eval().requires_grad_(False), card
