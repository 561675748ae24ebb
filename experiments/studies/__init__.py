"""Studies: the protocol, the ended cells and the page of each."""
