"""How long a test waits for what must come: far longer than it takes, for a busy machine is no failure."""

SECONDS = 300
MILLISECONDS = 1000 * SECONDS
