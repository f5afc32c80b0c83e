"""Mixed precision: which layer gets how many bits, so that a budget is met with least damage."""
