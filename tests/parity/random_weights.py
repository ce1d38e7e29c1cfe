"""Weights that let a wrong mask, angle or norm show, for transformers' models of any kind."""

import torch
import transformers


def randomized(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model in float32 with every parameter drawn anew."""
    model = model.float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # wide enough for uneven attention, so that a wrong mask or angle shows
            scale = 0.5 if parameter.ndim == 1 else 2.0 / parameter[0].numel() ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model
