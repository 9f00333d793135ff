"""The one error of checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, converted or written.

    The message names the file, the tensor where there is one, and what to do.
    """
