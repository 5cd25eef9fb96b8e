"""What a person reads: errors that can be put right, and text that is safe to show."""

import re

# Control characters but tab and newline, and those that turn the direction of writing
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text from a record as a terminal may have it: control characters escaped, as in \\x1b.

    Tabs and newlines stay. A terminal would obey the others: clear lines, rename its window.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class InputError(ValueError):
    """One line that says what is wrong, where (file and line or configuration key), and what to do.

    Scripts print it without a traceback; any other exception is a defect and keeps its traceback.
    """
