"""The pieces of work that frameworks do side by side, and in which settings.

Another framework is another module like trl_train.py (it reads a Task and answers through Turns, both of task.py, which
import nothing) and a Contender here; one with dependencies of its own, Tunix for example, names its interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.race import Contender
from tests.benchmarks.results import OURS


@dataclass(frozen=True)
class Work:
    """One piece of work. `corpus` is the folder under --corpora that it reads, "" if none.

    `options` go to both sides: the objective, which system prompt, how many dialogues, tokens of prompt + reply.
    """

    name: str
    corpus: str
    options: dict[str, Any]
    ours: Contender
    rivals: tuple[Contender, ...]
    also: dict[str, Any] = field(default_factory=dict)  # options that take their place with --quick


# The trainers run at their fastest: no gradient checkpointing (TRL's default recomputes every activation).
# padding_free is not among the DPO settings: TRL 1.16 warns that it is unavailable and pads.
_TRL_DPO = (
    Contender("trl, batch 2, precomputed reference", "trl_train", {"batch": 2, "precomputed": True}),
    Contender("trl, batch 4, precomputed reference", "trl_train", {"batch": 4, "precomputed": True}),
)
_TRL_DPO_SHORT = (
    Contender("trl, batch 4", "trl_train", {"batch": 4, "precomputed": False}),
    Contender("trl, batch 4, precomputed reference", "trl_train", {"batch": 4, "precomputed": True}),
)
_TRL_SFT = (
    Contender("trl, batch 2", "trl_train", {"batch": 2}),
    Contender("trl, packed (bfd), batch 1", "trl_train", {"batch": 1, "packing": "bfd"}),
    Contender("trl, packed (bfd) in rows of 3,072", "trl_train", {"batch": 1, "packing": "bfd", "max_length": 3072}),
)
# takes its turn beside every training work: what the machine gives in the same minutes
DENSE = Contender("jax, dense matmul", "matmul", {"shape": (2048, 2048, 2048), "seconds": 2.0})
_ESCONV = {"system_prompt": "dbt", "dialogues": 200, "max_length": 1024}
_OURS = Contender(OURS, "our_train", {"rows": 1, "row_length": 3072})


def _generation(kind: str) -> Work:
    return Work(
        f"generation_{kind}",
        "esconv",
        {"kind": "generation", "system_prompt": "dbt", "prompts": kind, "batch": 8, "new_tokens": 64},
        Contender(OURS, "our_generation"),
        (Contender("transformers", "hf_generation"),),
        also={"new_tokens": 16},
    )


def _matmul(*shape: int) -> Work:
    name = "matmul_" + "x".join(map(str, shape))
    options = {"kind": "matmul", "shape": shape}
    return Work(name, "", options, Contender("jax", "matmul"), (Contender("torch", "matmul", {"torch": True}),))


WORKS = (
    _matmul(2048, 2048, 2048),
    _matmul(1792, 576, 1536),  # tokens of a row x D x F of SmolLM2-135M
    _matmul(1792, 1536, 576),
    Work(
        "esconv_dpo",
        "esconv",
        {"kind": "dpo", **_ESCONV},
        _OURS,
        _TRL_DPO,
    ),
    Work(
        "ebd_dpo",
        "empathy_by_design",
        {"kind": "dpo", "system_prompt": "caregiving", "dialogues": 64, "max_length": 1024},
        _OURS,
        _TRL_DPO_SHORT,
    ),
    Work(
        "esconv_sft",
        "esconv",
        {"kind": "sft", **_ESCONV},
        _OURS,
        _TRL_SFT,
    ),
    _generation("one_dialogue"),
    _generation("eight_dialogues"),
)
