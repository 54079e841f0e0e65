"""The processes in which a site's app runs, in the simulation and in a hospital."""
