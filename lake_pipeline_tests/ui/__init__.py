"""The newcomer's path in a real browser: `make test-ui`, not part of `make test`."""
