"""Everything Dagster: resources, partitions, assets, jobs, and how they are put together.

Only this package and the command line import Dagster. What an asset does is in `export`, `seal` and
`verify`; what is here says when, with which settings, and what to show.
"""
