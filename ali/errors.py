"""The two errors that callers handle: a mistake of the user's, and training that diverged."""


class UserError(Exception):
    """A mistake of the user's; the message is one line: what is wrong, and what to do.

    Command lines print it on stderr and exit with code 2, without a traceback.
    """


class NonFiniteError(ArithmeticError):
    """A loss or a weight became NaN or infinite.

    Attributes:
        step: optimisation steps done when it was found.
        what: names of the non-finite values, e.g. ("d_loss",) or ("decoder.layers.0.weight",).
    """

    def __init__(self, step: int, what: tuple[str, ...]) -> None:
        super().__init__(step, what)
        self.step = step
        self.what = what

    def __str__(self) -> str:
        shown = ", ".join(self.what[:4]) + (", …" if len(self.what) > 4 else "")
        return f"non-finite {shown} at step {self.step}"
