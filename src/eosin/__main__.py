"""Entry point of `python -m eosin`: the `eosin` command."""

from eosin.cli.app import main

if __name__ == "__main__":
    main()
