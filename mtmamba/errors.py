"""The one exception type users see. Every message says what was expected, what was found, and what to do."""


class MtmError(Exception):
    """Anything a user can cause or cure. Commands print it as one sentence and exit with status 1."""
