"""The approval console: web pages over the same functions as the command line. It decides nothing of its own."""
