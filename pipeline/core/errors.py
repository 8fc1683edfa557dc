"""The errors of the project. The message of each is one line that a user can act on."""


class TallyportError(Exception):
    """Something failed; the command exits with status 1."""

    exit_status = 1


class ConfigurationError(TallyportError):
    """A setting, flag or file is wrong; the command exits with status 2."""

    exit_status = 2


class InvalidField(ConfigurationError):
    """A value breaks a rule; ``field`` names it."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class CorruptRecord(TallyportError):
    """An internal record cannot be trusted; going on would falsify totals."""


class Refused(TallyportError):
    """The state that was found forbids going on; the message says what to do."""
