"""Plans carried out by several ranks: processes on this machine, or on several of them."""
