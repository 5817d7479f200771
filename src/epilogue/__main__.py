"""``python -m epilogue``: the same as the ``epilogue`` command."""

from epilogue.cli.main import main

if __name__ == "__main__":
    main()
