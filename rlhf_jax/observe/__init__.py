"""Writers of what a person reads while a run goes on."""
