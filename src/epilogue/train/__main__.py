"""``torchrun ... -m epilogue.train RECIPE.yaml``: ``epilogue train`` in each of several processes."""

import sys

from epilogue.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
