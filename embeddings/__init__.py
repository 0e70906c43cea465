"""All tables behind one module: id mapping, sharding plan, sparse optimizers. Imports only pipelines."""
