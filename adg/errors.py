"""What a person can put right: bad input, bad configuration, files that do not belong together."""


class InputError(ValueError):
    """One line that says what is wrong, where (file and line or configuration key), and what to do.

    Scripts print it without a traceback; any other exception is a defect and keeps its traceback.
    """
