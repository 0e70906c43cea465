"""Ray's own metrics that our dashboards show. They come from Ray's agent on every node; names are of Ray 2.60."""

from __future__ import annotations

RAY_METRICS = {
    "ray_data_output_rows": "Rows out of an operator of Ray Data",
    "ray_data_cpu_usage_cores": "Logical CPUs that its tasks hold",
    "ray_data_current_bytes": "Of its blocks in the object store",
    "ray_node_cpu_utilization": "Busy share of a node's CPUs, in per cent",
    "ray_node_mem_used": "Memory of a node in use, bytes",
    "ray_node_mem_total": "Memory of a node, bytes",
    "ray_node_gpus_utilization": "Busy share of a GPU, in per cent",
    "ray_node_network_send_speed": "Bytes a second",
    "ray_node_network_receive_speed": "Bytes a second",
    "ray_node_disk_free": "Bytes",
    "ray_object_store_memory": "Bytes of objects, by where they are",
}
