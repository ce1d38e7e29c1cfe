"""Stage sft: supervised fine-tuning on replies."""

from __future__ import annotations

from jax.sharding import Mesh

from empathax.config import Config
from empathax.config.losses import REPLY_ROWS
from empathax.models.architecture.model_config import ModelConfig
from empathax.objectives.logprobs import sft_loss
from empathax.training.forward import make_scorer
from empathax.training.held_out import REPLIES, HeldOut, Measured
from empathax.training.stages.stage import LossFn, Stage


class Sft(Stage):
    """The negative log-likelihood of the replies' tokens."""

    name = "sft"
    label = "SFT"
    measures = REPLIES

    def rows_kind(self, config: Config) -> str:
        return REPLY_ROWS

    def make_loss(self, model_config: ModelConfig, config: Config, mesh: Mesh | None = None) -> LossFn:
        score = make_scorer(model_config, config.model, mesh)
        return lambda params, _, batch, of_step=None: sft_loss(score(params, batch).tokens, batch.weight_BM)

    def held_out_metrics(self, held_out: HeldOut, measured: Measured, before: Measured) -> dict[str, float]:
        return held_out.reply_metrics(measured)


STAGE = Sft()
