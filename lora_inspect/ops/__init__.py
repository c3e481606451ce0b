"""One file per verb: a plain function from paths and options to a result. Nothing here prints."""
