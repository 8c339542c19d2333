"""What the verbs of the command line do, as functions: one file per verb."""
