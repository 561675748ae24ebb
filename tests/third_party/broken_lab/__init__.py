"""Components that break a promise, one each: the batteries must say which."""
