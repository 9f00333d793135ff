"""What XLA says when a program takes more memory than there is, told from all else it may say."""

LINES = 6
"""Of an error, after which come tables and traces."""


def refusal_of(error: Exception) -> str | None:
    """XLA's account of the memory that is lacking, when it compiles or when it runs.

    None if something else is wrong. That a kernel takes more than a core's own memory is: no other
    slice or policy helps.
    """
    reason = first_lines(error)
    is_refusal = "RESOURCE_EXHAUSTED" in reason and "vmem" not in reason
    return reason if is_refusal else None


def first_lines(error: Exception) -> str:
    """The part of an error that is for people."""
    return "\n".join(str(error).strip().splitlines()[:LINES])
