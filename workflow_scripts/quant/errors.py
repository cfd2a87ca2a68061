"""The one exception that means: the user can mend this."""


class InputError(Exception):
    """Bad input. Its text is one line: what was found, where, and what to write instead."""
