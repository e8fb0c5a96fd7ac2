"""``--user-dir alum_fairseq`` where the plugin is imported already, from another place."""

from __future__ import annotations

import logging
import os

from alum_fairseq.compat.ours import PACKAGE

logger = logging.getLogger(__name__)


def import_the_plugin_once() -> None:
    """Let ``--user-dir`` name a clone of what was imported as installed, and the other way round.

    fairseq 0.12 says that the name is "not globally unique". Can go when it takes a package that
    was imported for the one of that name.
    """
    from fairseq.utils import import_user_module

    import_user_module.memo = _Imported(getattr(import_user_module, "memo", ()))


class _Imported(set):
    """Folders that ``--user-dir`` need not import."""

    def __contains__(self, path: object) -> bool:
        here = os.path.dirname(os.path.dirname(__file__))
        if os.path.basename(str(path)) != PACKAGE:
            return super().__contains__(path)
        if os.path.realpath(str(path)) != os.path.realpath(here):
            logger.info(f"--user-dir {path}: {PACKAGE} is imported already, from {here}")
        return True
