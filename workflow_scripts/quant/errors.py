"""The one exception that means: the user can mend this; and any other one in a line."""


class InputError(Exception):
    """Bad input. Its text is one line: what was found, where, and what to write instead."""


def one_line(error: BaseException) -> str:
    """An exception's first line, with the next where that ends in a colon, or its type where it says nothing."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[: 1 + next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))])
    return first if len(first) <= 160 else first[:157] + "..."
