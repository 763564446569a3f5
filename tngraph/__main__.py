"""``python -m tngraph`` is the command ``tngraph``."""

from tngraph.cli import main

if __name__ == "__main__":
    main()
