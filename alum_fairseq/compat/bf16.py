"""``--bf16`` trains on GPUs and CPUs."""

from __future__ import annotations

import sys
from typing import Any

from alum_fairseq.compat.ours import is_ours


def use_bf16_without_a_tpu() -> None:
    """Let ``--bf16`` mean bfloat16 on the machine that is there.

    fairseq 0.12's command line takes it for ``--tpu``, too, and fails without ``torch_xla``, on a
    GPU as on a CPU; under hydra it does not. Can go when ``--bf16`` of stock fairseq starts on a
    GPU.
    """
    from fairseq import options
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    parse = options.parse_args_and_arch

    def parse_args_and_arch(parser: Any, input_args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        parsed = parse(parser, input_args, *rest, **kwargs)
        args = parsed[0] if isinstance(parsed, tuple) else parsed
        asked = "--tpu" in (sys.argv if input_args is None else input_args)
        criterion = CRITERION_REGISTRY.get(getattr(args, "criterion", None), object)
        task = TASK_REGISTRY.get(getattr(args, "task", None), object)
        if getattr(args, "bf16", False) and not asked and (is_ours(criterion) or is_ours(task)):
            args.tpu = False
        return parsed

    options.parse_args_and_arch = parse_args_and_arch
