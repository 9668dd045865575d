"""The verbs of the command line, one a file; each has ``run(verb, arguments) -> exit code``."""
