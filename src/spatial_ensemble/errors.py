"""The one error of this package that a user's mistake raises above the mechanism."""


class UserError(ValueError):
    """What was received, where, and what to do. The command line prints it in one line and exits with code 2."""
