"""What a person is told at the end: the layer table, the collapse guard, the page."""
