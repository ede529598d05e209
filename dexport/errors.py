"""Every error that dexport raises on purpose: one line that says where, what was expected, what came, what to do.

The command line turns `exit_code` into the process's exit status: 2 for the user's mistakes, 1 for failures.
"""


class DexportError(Exception):
    """Base of all deliberate errors.

    Args:
        where: the file, option, component or node that is at fault.
        expected: what would have been right.
        got: what came instead.
        fix: what to do about it, as an imperative sentence without a full stop.
    """

    exit_code = 1

    def __init__(self, where: str, *, expected: str, got: str, fix: str) -> None:
        self.where, self.expected, self.got, self.fix = where, expected, got, fix
        super().__init__(f"{where}: expected {expected}, got {got}; {fix}")


class UserError(DexportError):
    """The request cannot be met as it stands: bad arguments, bad files, an impossible target."""

    exit_code = 2


class Failure(DexportError):
    """The request was legal and something broke while meeting it: disk full, a compiler failed, NaN in a result."""

    exit_code = 1
