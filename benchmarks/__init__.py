"""What holds is in tests/; what it costs is here: `python -m benchmarks.NAME`."""
