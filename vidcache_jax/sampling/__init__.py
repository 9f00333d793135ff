"""Sampling: the schedule, the rollout, and the files that frames are written to."""
