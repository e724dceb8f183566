"""Conservative Policy Iteration with resets on finite MDPs: theory that runs. Needs NumPy and SciPy only."""
