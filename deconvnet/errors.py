"""The one exception for what a user can mend."""


class InputError(Exception):
    """Something the user can mend. The message is one line: the file or key, what is wrong with it, the remedy."""
