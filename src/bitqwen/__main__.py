"""``python -m bitqwen`` is ``bitqwen``."""

from __future__ import annotations

import sys

from bitqwen.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
