"""From a student to a file that a stock runtime executes, and the proof that it does so."""
