"""The error for what a user can put right: one sentence with the file or option, the problem and the remedy."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Input that cannot be used. The command line prints it as one sentence and exits with code 2."""
