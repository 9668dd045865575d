"""A whole study: arms, controls, analyses, verdicts and report, as one command."""
