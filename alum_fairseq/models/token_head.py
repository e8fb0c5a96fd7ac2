"""A head for every token, on any of fairseq's RoBERTas, under its own names in a checkpoint.

fairseq's classification heads read ``<s>`` alone, and its loading of them asks for a second layer.
This one is what transformers has for questions and for tags: dropout, and one linear layer.
"""

from __future__ import annotations

import logging
from typing import Any

from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn
from typing_extensions import override

TOKEN_HEAD = "token_head"

logger = logging.getLogger(__name__)


class TokenHead(nn.Linear):
    """From features ``B x T x D`` to outputs ``B x T x C``."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__(width, outputs)
        self.dropout = nn.Dropout(dropout)
        init_bert_params(self)

    @override
    def forward(self, features: Tensor) -> Tensor:
        return super().forward(self.dropout(features))

    def upgrade_state_dict_named(self, state: dict[str, Tensor], name: str) -> None:
        """As fairseq does for its heads: where a checkpoint has no such head, keep this one."""
        for key, own in self.state_dict().items():
            found = state.get(f"{name}.{key}")
            if found is None or found.shape != own.shape:
                logger.info("%s.%s is not in the checkpoint: it is new", name, key)
                state[f"{name}.{key}"] = own


class _Call(nn.Module):
    """Stands among the classification heads, by which fairseq's model finds the head."""

    def __init__(self, head: TokenHead) -> None:
        super().__init__()
        self._head = (head,)  # no submodule: its weights would have two names

    @override
    def forward(self, features: Tensor) -> Tensor:
        return self._head[0](features)


def add_token_head(model: Any, outputs: int) -> None:
    """Give a RoBERTa the head that ``classification_head_name=TOKEN_HEAD`` asks for."""
    args = model.args
    model.token_head = TokenHead(args.encoder_embed_dim, outputs, args.pooler_dropout)
    model.classification_heads[TOKEN_HEAD] = _Call(model.token_head)
