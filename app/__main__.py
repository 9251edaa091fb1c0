"""Where the `nearcall` command starts. It imports little itself, so that Ctrl-C is heard while the rest loads."""

from app.cli.interrupts import INTERRUPTED, end_at_once_on_ctrl_c


def main() -> None:
    """Run the command line; Ctrl-C at any moment is status 130, without a traceback."""
    end_at_once_on_ctrl_c()
    try:
        from app.cli import main as cli  # noqa: PLC0415  takes half a second

        cli.main()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
