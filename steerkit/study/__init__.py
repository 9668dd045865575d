"""The whole study as a work list of commands, with controls, verdicts and a report."""
