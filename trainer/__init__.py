"""The command and everything that joins the rooms: config, launch, recommender, loop, dense sync, telemetry,
checkpoint."""
