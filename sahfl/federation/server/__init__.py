"""The coordinating centre's side of a study: sites, requests, rounds, cells, and the queue of studies."""
