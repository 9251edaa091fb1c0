"""Where the `nearcall` command starts. It imports nothing itself, so that Ctrl-C is heard while the rest loads."""


def main() -> None:
    """Run the command line; Ctrl-C at any moment is status 130, without a traceback."""
    try:
        from app.cli import main as cli  # noqa: PLC0415  takes half a second

        cli.main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
