"""Work on more than one process or machine: a function mapped over shards by a Dask cluster, workers that may die."""
