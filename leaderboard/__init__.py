"""The leaderboard, written from results and from nothing else."""
