"""What a run will need and take, before any chip is rented."""
