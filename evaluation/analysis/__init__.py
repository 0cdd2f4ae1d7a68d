"""Statistics across the finished runs of a study, and figures of them: `python -m evaluation.analyse runs/<study>`."""
