"""How an operation divides an axis that it must not hold whole."""


def block_size(size: int, most: int) -> int:
    """The largest divisor of ``size`` up to ``most``: blocks of equal size, none padded.

    Example: block_size(28080, 1024) == 936. A prime beyond ``most`` gives 1, which is right and
    slow; token counts of real videos have many divisors.
    """
    return max(block for block in range(1, min(size, most) + 1) if size % block == 0)
