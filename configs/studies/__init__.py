"""Studies: experiments of many runs, for the command sweep."""
