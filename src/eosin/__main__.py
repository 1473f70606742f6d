"""`python -m eosin` is the `eosin` command."""

from eosin.cli.app import main

if __name__ == "__main__":
    main()
