"""What is wrong with a table of a configuration file: where in it, and why. Knows no file and no line."""


class TableError(ValueError):
    """A table cannot be used."""

    def __init__(self, path: tuple[str, ...], why: str) -> None:
        super().__init__(f"{'.'.join(path)}: {why}")
        self.path = path
        """From the outermost table to the field: ("zones", "eu", "regions")."""
        self.why = why
