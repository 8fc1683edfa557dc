"""The ``tallyport`` command."""

import sys

_EXTRA_OF_PACKAGE = {"confluent_kafka": "kafka"}


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its status: 0 done, 1 failed, 2 usage or configuration."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        from pipeline.cli.root import run

        status = run(given)
    except ModuleNotFoundError as error:
        if "--debug" in given or (error.name or "").split(".")[0] in ("pipeline", "producers"):
            raise
        status = _missing(error.name or "")
    sys.exit(status)


def _missing(package: str) -> int:
    extra = _EXTRA_OF_PACKAGE.get(package.split(".")[0], "all")
    print(
        f"tallyport: this command needs the extra '{extra}' (package {package} is missing): "
        f"pip install 'tallyport[{extra}]'",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    main()
