"""``python -m bookbuild``: what the Makefile calls.

``chapters`` lists them; ``book [PROFILE]``, ``chapter N[,N] PROFILE [NAME=VALUE ...]`` and ``pair [N ...]`` run them,
``--jobs=2`` at a time. The processes that do so import this module too, and must not import the library with it.
"""

import sys

if __name__ == "__main__":
    from bookbuild.commands import main

    sys.exit(main(sys.argv[1:]))
