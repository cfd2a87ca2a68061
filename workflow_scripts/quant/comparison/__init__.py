"""Which method is better and how sure that is: paired differences, verdicts, questions and their answers."""
