"""What fairseq needs on today's Python and torch. Each fix says which version needs it."""

from functools import cache

from alum_fairseq.compat import (
    bf16,
    chatter,
    command_line,
    epochs,
    libraries,
    loaders,
    reading,
    resume,
    user_dir,
    validating,
    writing,
)
from alum_fairseq.compat.reading import evaluate_literal

__all__ = ["apply", "evaluate_literal"]


@cache
def apply() -> None:
    """Apply every fix, once."""
    reading.load_checkpoints_with_namespace()
    reading.load_checkpoints_with_numpy_numbers()
    reading.hand_checkpoints_to_all_ranks()
    reading.extract_archives_into_their_folder()
    writing.name_the_folder_of_checkpoints()
    writing.write_checkpoints_whole()
    writing.survive_a_full_disk()
    libraries.restore_numpy_long()
    libraries.find_nan_in_dictionaries()
    loaders.stop_abandoned_loaders()
    loaders.stop_loaders_at_exit()
    bf16.use_bf16_without_a_tpu()
    command_line.explain_the_chosen_options()
    epochs.tell_all_parts_the_epoch()
    resume.resume_as_never_stopped()
    validating.say_which_criterion_validates()
    user_dir.import_the_plugin_once()
    chatter.silence_chatter()
    reading.evaluate_literals_alone()  # in all that the others have imported
