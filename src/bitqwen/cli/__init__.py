"""The command line: one module a verb, put together in :mod:`bitqwen.cli.app`."""
