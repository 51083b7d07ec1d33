"""The format and its rules, pure: values in, values out.

No Dagster, no driver, no files, no clock, no environment. Anything that needs one of those belongs in `io`.
"""
