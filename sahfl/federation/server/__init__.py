"""The coordinating centre's side: who takes part, rounds, the run on disk, results, and the port that sites reach."""
