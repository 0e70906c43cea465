"""What a run tells: the console line, metrics.jsonl, TensorBoard and a Prometheus endpoint per rank."""
