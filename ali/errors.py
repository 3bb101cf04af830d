"""The two errors that callers tell apart: the user's mistake, and training that diverged."""


class UserError(Exception):
    """A mistake of the user's: the message is one line that says what is wrong and what to do.

    Command lines print it on stderr and exit with code 2, without a traceback.
    """


class NonFiniteError(ArithmeticError):
    """A loss or a weight became NaN or infinite.

    Attributes:
        step: optimisation steps done when it was seen.
        what: names of what was non-finite, e.g. ("d_loss",) or ("decoder.layers.0.weight",).
    """

    def __init__(self, step: int, what: tuple[str, ...]) -> None:
        super().__init__(step, what)
        self.step = step
        self.what = what

    def __str__(self) -> str:
        shown = ", ".join(self.what[:4]) + (", …" if len(self.what) > 4 else "")
        return f"non-finite {shown} at step {self.step}"
